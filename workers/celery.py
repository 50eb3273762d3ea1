"""Makes the Celery app of this project; `install` puts the bus's consumer into any other Celery app.

celery -A workers worker -c 4 --groups inventory,ledger
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import click
from celery import Celery, Task, signals
from celery.worker import strategy
from celery.worker.control import Panel
from celery.worker.request import Request

from bus import testrun
from workers.bootstep import BusConsumerStep, BusWorkerStep
from workers.broker_settings import broker_settings
from workers.inspection import mask
from workers.order import SLICE_TASK, SliceOrder


class SliceRequest(Request):  # type: ignore[misc]  # Celery has no types
    """The Celery request of a slice."""

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Cancel the slice if the worker ends at once, not if the broker is lost: that never had it."""
        if not emit_retry:
            super().cancel(pool, signal, emit_retry)


class SliceTask(Task):  # type: ignore[misc]  # Celery has no types
    """The Celery task of a slice.

    No setting of the project applies to it, and remote control does not change it: each message has its own
    time limits and retries. All that the task needs is set here, and only here.
    """

    Request = SliceRequest
    from_config = ()
    abstract = True
    ignore_result = True
    store_errors_even_if_ignored = False
    track_started = False
    acks_late = True
    acks_on_failure_or_timeout = False
    reject_on_worker_lost = True

    @classmethod
    def annotate(cls) -> None:
        """Ignore `task_annotations`, which may be meant for all tasks."""

    def start_strategy(self, app: Celery, consumer: Any, **options: Any) -> Any:
        return strategy.default(self, app, _Unlimited(consumer), **options)


class _Unlimited:
    """Celery's consumer as a slice needs it: without rate limits and time limits."""

    disable_rate_limits = True

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.pool = _UnlimitedPool(consumer.pool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


class _UnlimitedPool:
    """Celery's pool as a slice needs it: without the pool's own time limits."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Start a slice without time limits.

        Only the main loop starts anything in a pool with time limits, so nothing else starts meanwhile.
        """
        options.update(timeout=None, soft_timeout=None)
        billiard: Any = getattr(self._pool, "_pool", None)
        if not hasattr(billiard, "soft_timeout"):
            return self._pool.apply_async(*args, **options)
        limits = billiard.timeout, billiard.soft_timeout
        billiard.timeout = billiard.soft_timeout = None
        try:
            return self._pool.apply_async(*args, **options)
        finally:
            billiard.timeout, billiard.soft_timeout = limits


def install(app: Celery) -> None:
    """Make the workers of a Celery app consume from the bus.

    The app's broker and settings stay as they are.
    """
    app.steps["worker"].add(BusWorkerStep)
    app.steps["consumer"].add(BusConsumerStep)
    app.user_options["worker"].add(
        click.Option(["--groups"], help="Consumer groups of the bus to serve, by comma. Default: all.")
    )
    app.user_options["worker"].add(
        click.Option(["--no-bus"], is_flag=True, help="Do not consume from the bus in this worker.")
    )
    app.task(_run_slice, name=SLICE_TASK, base=SliceTask)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).addFilter(_quiet_slices)
    mask(Panel.data)


def _run_slice(order: SliceOrder) -> None:
    """Run a slice in the pool process. Raises PermissionError for an order of another process tree."""
    runtime = BusWorkerStep.runtime
    if runtime is None or not isinstance(order, SliceOrder) or order.nonce != runtime.nonce:
        raise PermissionError("A slice of the bus can only be started by its own worker.")
    from workers.slices.slice import run

    try:
        run(runtime, order)
    except Exception:
        raise
    except BaseException as error:
        # Not out of a handler, which is guarded, but of a task that it left in the event loop, a receiver of
        # a signal, … In the threads pool Celery would never hear of the end of this slice, in the others it
        # would end the process. Only who ends this process from outside may do that.
        if runtime.is_ending():
            raise
        raise RuntimeError(f"A slice of the bus was broken off by {error!r}.") from error


def _quiet_slices(record: logging.LogRecord) -> bool:
    """Keep out Celery's lines about slices: they come once a second and more, and would bury the others."""
    data: Any = getattr(record, "data", None)
    return record.levelno > logging.INFO or not isinstance(data, dict) or data.get("name") != SLICE_TASK


@cache
def _make() -> Celery:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    app = Celery("jitney")
    app.config_from_object("django.conf:settings", namespace="CELERY")
    from django.conf import settings

    if not getattr(settings, "CELERY_BROKER_URL", None):
        app.conf.update(broker_settings(testrun.from_django().address))
    app.conf.broker_connection_retry_on_startup = True
    # Slices are acknowledged by the bus; a broker that goes away is no reason to end them.
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = False
    app.autodiscover_tasks()
    install(app)
    return app


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def _start_embedded_server(**_: Any) -> None:
    """Start the embedded server before Celery connects: it is the broker of the stand-alone worker."""
    from bus import default

    endpoint = default.get().endpoint
    if endpoint.directory is not None:
        default.get().client.call("PING")


def __getattr__(name: str) -> Any:
    # Made when first asked for: a project that only wants `install` must not get a second Celery app.
    if name == "app":
        return _make()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
