"""The same work as ordinary Celery tasks. `python -m benchmarks.tasks N` publishes N of them."""

from __future__ import annotations

import os
import sys

from celery import Celery

app = Celery("benchmarks.tasks", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=64)

total = 0


def handle(order: dict[str, int]) -> None:
    """What the other contestants do."""
    global total
    total += order["qty"]


# Called, not written above `handle`: Celery brings no types, and its decorator would hide those of `handle`.
task = app.task(name="benchmarks.order")(handle)


def main(count: int) -> None:
    from benchmarks.consume import order

    with app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            task.apply_async((order(number),), producer=producer)


if __name__ == "__main__":
    # Under its own name, so that the task's module is the one that the worker imports.
    from benchmarks.tasks import main as run

    run(int(sys.argv[1]))
