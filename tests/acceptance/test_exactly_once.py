"""Once in effect: sums in the database are exact, although processes and workers are killed all the while."""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from bus import observe
from bus.client import Bus
from bus.errors import UnknownGroup
from bus.streams.embedded import EmbeddedServer
from config.database import database as database_of
from tests import nursery
from tests.acceptance.shopping import Worker
from tests.databases import KINDS, raw_connection
from tests.mariadb import MariaDB
from tests.postgres import Postgres
from tests.waiting import wait_until

MESSAGES = 2500
#: Of the test with two transactions for each message.
FORWARDED = 1000
#: After so many further messages something is killed: mostly a pool process, each fifth time a worker.
STEP = 250


def deadly(count: int) -> range:
    """Five messages that kill their process between the commit and the settle, at their first attempt."""
    return range(7, count, count // 5)


class Bank:
    """A bus, a database, and workers."""

    def __init__(self, url: str, prefix: str, directory: Path, database: str) -> None:
        self.directory = directory
        self.bus = Bus(url, prefix=prefix)
        self.deaths = directory / "deaths"
        self.deaths.touch()
        self.freeze = directory / "freeze"
        self._entry = database_of(database, directory / "data")
        self.environment = {
            **os.environ,
            "BUS_URL": url,
            "BUS_PREFIX": prefix,
            "BANK_DEATHS": str(self.deaths),
            "BANK_FREEZE": str(self.freeze),
            "JITNEY_DATA": str(directory / "data"),
            "JITNEY_DATABASE": database,
            "DJANGO_SETTINGS_MODULE": "tests.acceptance.bank.settings",
            "CELERY_QUEUE_PREFIX": prefix,
            "PYTHONWARNINGS": "ignore",
        }
        nursery.run(["manage.py", "migrate", "--run-syncdb", "-v", "0"], self.environment, 90)
        self._connection = raw_connection(self._entry)
        self._workers: list[Worker] = []

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def open_accounts(self, *groups: str) -> None:
        for group in groups:
            self.query(f"INSERT INTO bank_total (\"group\", amount) VALUES ('{group}', 0)")

    def publish(self, topic: str, count: int) -> None:
        values = ({"n": n, **({"die": True} if n in deadly(count) else {})} for n in range(count))
        assert self.bus.publish_many(topic, values, key=lambda value: f"k{value['n'] % 50}") == count

    def worker(self, groups: Sequence[str], processes: int = 2) -> Worker:
        options = ("-c", str(processes), "--groups", ",".join(groups))
        worker = Worker(self, f"w{len(self._workers)}", options)  # type: ignore[arg-type]  # what it needs of a shop
        self._workers.append(worker)
        return worker

    @property
    def ready(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.runs and worker.says(" ready.")]

    def handled(self) -> int:
        return int(self.query("SELECT COUNT(*) FROM bank_entry")[0][0])

    def settled(self, topic: str, group: str) -> bool:
        try:
            seen = observe.group(self.bus, topic, group)[0]
        except UnknownGroup:
            return False
        return seen.lag is not None and seen.lag.count == 0 and seen.pending == 0

    def storm(self, groups: Sequence[str], messages: int, seed: int) -> int:
        """Kill pool processes and workers while this many messages are handled; how many were killed."""
        draw, killed = random.Random(seed), 0
        for number, wanted in enumerate(range(STEP, messages - STEP, STEP), 1):
            wait_until(lambda wanted=wanted: self.handled() >= wanted, 90, f"{wanted} messages", 0.05)
            # Celery gives up a worker whose pool dies while it starts; that is not what is tested here.
            victim = draw.choice(wait_until(lambda: self.ready, 90, "a worker to be ready", 0.05))
            if number % 5 == 0:
                victim.kill()
                self.worker(groups)
                killed += 1
                continue
            with suppress(ProcessLookupError, IndexError):
                os.kill(draw.choice(victim.children()), signal.SIGKILL)
                killed += 1
        return killed

    def assert_exact(self, group: str, count: int) -> None:
        seen = Counter(n for (n,) in self.query(f"SELECT n FROM bank_entry WHERE \"group\" = '{group}'"))
        twice = {n: times for n, times in seen.items() if times > 1}
        assert (sorted(set(range(count)) - set(seen)), twice) == ([], {}), "lost, handled twice"
        ((total,),) = self.query(f"SELECT amount FROM bank_total WHERE \"group\" = '{group}'")
        assert total == sum(range(count))

    def end(self) -> None:
        for worker in self._workers:
            worker.end()
        self._connection.close()
        self.bus.close()


@pytest.fixture(params=KINDS)
def bank(
    request: pytest.FixtureRequest, server: EmbeddedServer, prefix: str, tmp_path: Path
) -> Iterator[Bank]:
    url = ""
    if request.param != "sqlite":
        database: Postgres | MariaDB = request.getfixturevalue(request.param)
        name = f"bank{uuid.uuid4().hex[:10]}"
        database.create(name)
        url = database.url(name)
    bank = Bank(server.url, prefix, tmp_path, url)
    yield bank
    bank.end()


def prepare(bank: Bank, topic: str, groups: Sequence[str], count: int) -> None:
    bank.bus.topic(topic, partitions=4)
    bank.bus.registry.project(bank.bus.declared.specs().values())
    bank.open_accounts(*groups)
    bank.publish(topic, count)
    for _ in range(2):
        bank.worker(groups)


@pytest.mark.timeout(300)
def test_sums_are_exact_although_processes_are_killed_and_die_between_commit_and_settle(bank: Bank) -> None:
    groups = ("single", "batch")
    prepare(bank, "amounts", groups, MESSAGES)

    killed = bank.storm(groups, 2 * MESSAGES, seed=7)

    for group in groups:
        wait_until(lambda group=group: bank.settled("amounts", group), 90, f"{group} to be settled", 0.1)
        bank.assert_exact(group, MESSAGES)
        assert (
            bank.bus.client.call("EXISTS", *(keys.dead(group) for keys in _partitions(bank, "amounts"))) == 0
        )
    assert killed >= MESSAGES / STEP
    assert len(bank.deaths.read_text()) >= len(deadly(MESSAGES))


@pytest.mark.timeout(300)
def test_what_an_atomic_handler_publishes_in_its_transaction_is_exact_too(bank: Bank) -> None:
    groups = ("forward", "collect")
    bank.bus.topic("forwarded", partitions=4)
    prepare(bank, "transfers", groups, FORWARDED)

    killed = bank.storm(groups, 2 * FORWARDED, seed=11)

    wait_until(lambda: bank.settled("transfers", "forward"), 90, "forward to be settled", 0.1)
    wait_until(lambda: bank.query("SELECT COUNT(*) FROM jitney_outboxrow") == [(0,)], 60, "the outbox", 0.1)
    wait_until(lambda: bank.settled("forwarded", "collect"), 90, "collect to be settled", 0.1)
    for group in groups:
        bank.assert_exact(group, FORWARDED)
    stored = sum(bank.bus.client.call("XLEN", keys.stream) for keys in _partitions(bank, "forwarded"))
    assert stored == FORWARDED
    assert killed >= FORWARDED / STEP
    assert len(bank.deaths.read_text()) >= len(deadly(FORWARDED))


@pytest.mark.timeout(180)
def test_an_owner_that_is_frozen_before_its_first_statement_until_its_row_is_forgotten_repeats_nothing(
    bank: Bank,
) -> None:
    # Given a worker with a pool process that was stopped when its transaction began, and then as a whole
    count = 8
    bank.bus.topic("amounts", partitions=4)
    bank.bus.registry.project(bank.bus.declared.specs().values())
    bank.open_accounts("single")
    frozen = bank.worker(["single"], processes=1).wait_ready()
    # All of one key, so that its process has them in hand, after one with which it has opened the place.
    bank.bus.publish("amounts", {"n": 0}, key="k")
    wait_until(lambda: bank.handled() == 1, 30, "the first message")
    bank.freeze.touch()
    rest = [{"n": n} for n in range(1, count)]
    assert bank.bus.publish_many("amounts", rest, key=lambda _: "k") == len(rest)
    (stopped,) = wait_until(
        lambda: list(bank.directory.glob("freeze.*")), 30, "a pool process to stop itself"
    )
    frozen.freeze()

    # When another has handled and settled all, and forgotten what it knew of each message
    bank.worker(["single"])
    wait_until(lambda: bank.settled("amounts", "single"), 60, "all to be settled", 0.1)
    assert bank.handled() == count
    wait_until(
        lambda: bank.query("SELECT COUNT(*) FROM jitney_inboxrow") == [(0,)], 60, "the rows to go", 0.1
    )

    # Then the frozen one goes on, and does nothing
    assert int(stopped.suffix[1:]) in frozen.children()
    frozen.thaw()
    wait_until(
        lambda: frozen.says("is not ours any more") or frozen.says("goes on there"),
        30,
        "its leases to be lost",
    )
    wait_until(lambda: frozen.says("says that group single settled it"), 30, "the message to be passed over")
    assert frozen.stop() == 0
    bank.assert_exact("single", count)


def _partitions(bank: Bank, topic: str) -> list[Any]:
    return [bank.bus.keys.partition(topic, number) for number in range(4)]
