"""`mypy --strict` checks a user's project against the wheel: our types are there, and right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

#: The whole project: path → text. Lines that end with `# error: code` must have that error, no others any.
FILES = {
    "mypy.ini": """
        [mypy]
        strict = true
        files = shop
    """,
    "shop/__init__.py": "",
    "shop/settings.py": """
        import bus

        SECRET_KEY = "of-a-test"
        INSTALLED_APPS = ["django.contrib.admin", "bus", "workers", "admin_ui", "shop"]
        BUS: dict[str, object] = {"URL": "redis://localhost", "GROUPS": ["stock"]}
        VERSION: str = bus.__version__
    """,
    "shop/topics.py": """
        from datetime import timedelta

        import bus

        orders = bus.topic("orders", partitions=8, retention=timedelta(days=7))
    """,
    "shop/consumers.py": """
        from datetime import datetime

        import bus
        from shop.topics import orders
        from workers.batch import Batch


        @bus.subscribe(orders, group="stock", ordering="key", retry=bus.RetryPolicy(attempts=3), atomic=True)
        def reserve(message: bus.Message) -> None:
            key: str | None = message.key
            tenant: str | None = message.headers.get("tenant")
            place: tuple[str, int, str] = message.topic, message.partition, message.id
            at: datetime = message.timestamp
            if message.attempt > 1 and not message.lease_valid():
                raise bus.Retry("not ours", delay=10)
            if message.value["qty"] < 1:
                raise bus.Reject(f"nothing ordered by {key} of {tenant} at {at} ({place})")


        @bus.subscribe("orders", group="ledger", batch=500)
        def book(batch: Batch) -> None:
            for message in batch:
                if message.value is None:
                    batch.reject(message, "empty")
            last: bus.Message = batch[-1]
            batch.retry(last, delay=2.5)


        @bus.subscribe("orders", group="mail")
        async def mail(message: bus.Message) -> None:
            receipt: bus.Receipt = await bus.apublish("mails", message.value, key=message.key)
            count: int = await orders.apublish_many([message.value, receipt.id])
            assert count == 2


        def by_hand(message: bus.Message) -> None:
            reserve(message)
    """,
    "shop/views.py": """
        import bus
        from shop.topics import orders


        def buy(sku: str) -> str:
            receipt = orders.publish({"sku": sku}, key=sku, headers={"tenant": "de"})
            known: bus.Receipt = bus.publish("orders", {"sku": sku}, message_id="order-991", delay=30)
            bus.publish_on_commit("orders", {"sku": sku})
            bus.publish_in_transaction("orders", {"sku": sku}, using="default")
            try:
                count: int = bus.publish_many("orders", range(3), key=str)
            except bus.BusUnavailable:
                count = 0
            with bus.Producer(linger=0.01) as producer:
                future: bus.PublishFuture = producer.send("orders", {"sku": sku}, key=sku)
            return f"{receipt.partition} {receipt.duplicate} {known.id} {count} {future.result(1.0).id}"


        def elsewhere() -> bus.Receipt:
            return bus.Bus("redis://localhost").publish("orders", 1)
    """,
    "shop/celery.py": """
        from workers import install

        work = install
    """,
    "shop/misuse.py": """
        import bus
        from shop.consumers import reserve
        from shop.topics import orders


        def wrong(message: bus.Message) -> None:
            bus.publish("orders", {}, key=7)  # error: arg-type
            bus.publish("orders", {}, keys="A1")  # error: call-arg
            orders.publish({}, headers={"tenant": 1})  # error: dict-item
            bus.topic("mails", partitions="8")  # error: arg-type
            bus.RetryPolicy(tries=3)  # error: call-arg
            number: int = message.id  # error: assignment
            message.topic = "mails"  # error: misc
            message.body  # error: attr-defined
            reserve(number)  # error: arg-type
            bus.publish("orders", {}).offset  # error: attr-defined


        @bus.subscribe("orders", group="stock", ordering="keys")  # error: arg-type
        def ordered(message: bus.Message) -> None: ...


        @bus.subscribe("orders", group="ledger")  # error: type-var
        def of_two(message: bus.Message, more: str) -> None: ...


        async def forgotten() -> None:
            bus.apublish("orders", {}).id  # error: attr-defined
    """,
}

_ERROR = re.compile(r"(?P<place>[^:]+:\d+): error: .*\[(?P<code>[a-z-]+)\]")
_WANTED = re.compile(r"# error: (?P<code>[a-z-]+)$")


def write(directory: Path) -> list[tuple[str, str]]:
    """Write the project; places and codes of the errors that it is to have."""
    wanted = []
    for name, text in FILES.items():
        lines = [line.removeprefix("        ") for line in text.strip("\n").split("\n")]
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines).rstrip() + "\n")
        for number, line in enumerate(lines, 1):
            if match := _WANTED.search(line):
                wanted.append((f"{name}:{number}", match["code"]))
    return wanted


def check(project: Path, installed: Path) -> list[tuple[str, str]]:
    """Run `mypy --strict` over the project; places and codes of its errors.

    mypy looks for packages on the path of the program that is to run the project, and takes types of those
    with a `py.typed` only. The checkout is not on it.
    """
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    environment.pop("MYPYPATH", None)
    ended = subprocess.run(
        (sys.executable, "-m", "mypy"),
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert not ended.stderr, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if ": error: " in line]
    matches = [_ERROR.fullmatch(line) for line in lines]
    assert all(matches), ended.stdout
    return [(match["place"], match["code"]) for match in matches if match]


def test_right_use_has_no_error_and_each_misuse_has_its_own(tmp_path: Path, installed: Path) -> None:
    wanted = write(tmp_path)
    assert sorted(check(tmp_path, installed)) == sorted(wanted)
