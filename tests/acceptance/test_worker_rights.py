"""A real worker with exactly the access rules of docs/security.md; and with less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bus import observe
from bus.cli.direct import Direct
from bus.client import Bus
from bus.operating import deadletters, fates
from bus.operating.deadletters import Selection
from bus.streams.connect import is_forbidden
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import Shop
from tests.acceptance.test_exactly_once import Bank
from tests.acls import as_user, rules, user_url
from tests.servers import broker_url
from tests.waiting import wait_until


def granted(prefix: str, *more: str) -> list[str]:
    """The rules of the document, for another prefix."""
    return [*(rule.replace("~bus:", f"~{prefix}:") for rule in rules("worker")), *more]


@pytest.fixture
def shop(own_server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop whose workers have another broker user than the bus."""
    shop = Shop(own_server.url, prefix, tmp_path)
    shop.environment["CELERY_BROKER_URL"] = broker_url(own_server.url)
    yield shop
    shop.end()


def employ(shop: Shop, server: EmbeddedServer, *less: str) -> None:
    """Workers from now on are this user."""
    prefix = shop.bus.settings.prefix
    shop.environment["BUS_URL"] = user_url(server, "worker", granted(prefix, *less))


def refusals(shop: Shop) -> list[str]:
    return refused((shop.directory / "one.log").read_text(errors="replace"))


def refused(log: str) -> list[str]:
    return [line for line in log.splitlines() if re.search(r"NOPERM|ACL failure|can't run|forbid", line)]


@pytest.mark.both_servers
def test_a_worker_does_all_its_work_with_the_rules_of_the_document(
    shop: Shop, own_server: EmbeddedServer
) -> None:
    # given topics of all orderings, with messages that succeed, fail once, and die
    employ(shop, own_server)
    shop.migrate()
    limited = shop.bus.registry.specs()["limited"]
    shop.bus.registry.project([replace(limited, retention=timedelta(seconds=1))])
    for topic in ("keyed", "strict", "loose", "batches", "awaited", "limited"):
        shop.publish(topic, 20)
        shop.publish(topic, 4, first=20, fail=1)
        shop.publish(topic, 1, first=24, reject="no use")
    shop.bus.publish("keyed", {"n": 25}, delay=1)
    # when a worker comes
    worker = shop.worker().wait_ready()
    # then all is handled or dead, what was delayed too, and what is old is trimmed
    for topic in ("keyed", "strict", "loose", "batches", "awaited", "limited"):
        shop.wait_idle(topic)
        wait_until(lambda topic=topic: len(shop.dead_letters(topic)) == 1, 30, f"the dead letter of {topic}")
        assert {line.n for line in shop.lines("end", topic)} >= set(range(24))
    wait_until(lambda: any(line.n == 25 for line in shop.lines("end", "keyed")), 30, "the delayed message")
    wait_until(lambda: shop.copied_marks("keyed"), 40, "the marks to be copied")
    wait_until(lambda: kept(shop.bus, "limited") < 10, 60, "old messages to be trimmed")
    # and the verbs of operators work with the same rules
    clerk = as_user(own_server, "clerk", granted(shop.bus.settings.prefix), prefix=shop.bus.settings.prefix)
    assert fates.retry(clerk, "keyed", "bykey", list(letters(clerk, "keyed", "bykey")))
    wait_until(lambda: len(shop.dead_letters("keyed")) == 1, 30, "it to die once more")
    run_verbs(clerk)
    clerk.close()
    assert worker.stop() == 0
    assert refusals(shop) == []


def kept(bus: Bus, topic: str) -> int:
    return sum(part.length or 0 for part in observe.partitions(bus, topic))


def letters(bus: Bus, topic: str, group: str) -> Iterator[fates.LetterRef]:
    found = deadletters.find(bus, topic, group, Selection())
    for batch in fates.batches(found):
        yield from batch


def run_verbs(bus: Bus) -> None:
    hands = Direct(bus)
    hands.create_topic("wages", 2, None, "")
    hands.create_group("wages", "payroll", "earliest", "key")
    hands.pause_group("wages", "payroll")
    hands.resume_group("wages", "payroll")
    bus.publish("wages", 1, delay=3600)
    hands.change_topic("wages", {"partitions": 3})
    hands.delete_group("wages", "payroll")
    hands.delete_topic("wages", "wages")


@pytest.mark.both_servers
@pytest.mark.timeout(200)
def test_atomic_handlers_the_inbox_and_the_relay_of_the_outbox_need_no_more(
    own_server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    # given atomic handlers, one of which publishes in its transaction, and a worker with the rules alone
    bank = Bank(own_server.url, prefix, tmp_path, "")
    try:
        bank.environment["CELERY_BROKER_URL"] = broker_url(own_server.url)
        bank.environment["BUS_URL"] = user_url(own_server, "worker", granted(prefix))
        for topic in ("transfers", "forwarded"):
            bank.bus.topic(topic, partitions=4)
        bank.bus.registry.project(bank.bus.declared.specs().values())
        bank.open_accounts("forward", "collect")
        for number in range(40):
            bank.bus.publish("transfers", {"n": number}, key=f"k{number % 10}")
        # when it comes
        worker = bank.worker(("forward", "collect")).wait_ready()
        # then each message has its effect once, and so has what it published
        for topic, group in (("transfers", "forward"), ("forwarded", "collect")):
            wait_until(lambda: bank.query("SELECT COUNT(*) FROM bank_entry") == [(80,)], 60, "all effects")
            wait_until(lambda at=(topic, group): bank.settled(*at), 60, f"{group} to be settled")
            bank.assert_exact(group, 40)
        wait_until(
            lambda: bank.query("SELECT COUNT(*) FROM jitney_outboxrow") == [(0,)], 60, "the relay to delete"
        )
        # and the rows of the inbox go, as the marks go up
        wait_until(
            lambda: bank.query("SELECT COUNT(*) FROM jitney_inboxrow") == [(0,)], 60, "the inbox to shrink"
        )
        assert worker.stop() == 0
        assert refused(worker.log.read_text(errors="replace")) == []
    finally:
        bank.end()


@pytest.mark.both_servers
def test_a_worker_goes_on_without_names_ids_info_and_time(shop: Shop, own_server: EmbeddedServer) -> None:
    # given a user who may not end blocks of others, nor ask for the time
    employ(shop, own_server, "-client", "-info", "-time", "-memory")
    worker = shop.worker().wait_ready()
    shop.wait_owned("keyed")
    # when messages come, one batch after the other
    for first in range(0, 60, 20):
        shop.publish("keyed", 20, first=first)
        shop.publish("loose", 20, first=first)
        shop.wait_idle("keyed")
        shop.wait_idle("loose")
    # then each is handled, once
    shop.assert_each_once("keyed", 60)
    shop.assert_each_once("loose", 60)
    # and what is missing is said as a warning, once, and not at each message
    said = [line for line in refusals(shop) if "New work is looked for every" in line]
    assert len(said) == 1
    assert " WARNING " in said[0]
    # and what needs the time is refused aloud, with the key
    shop.publish("strict", 1, fail=1)
    wait_until(lambda: [line for line in refusals(shop) if "strict:" in line], 30, "a warning with the key")
    assert all(" WARNING " in line or " ERROR " in line for line in refusals(shop))
    assert len(refusals(shop)) < 12
    worker.stop()


def test_a_worker_that_may_not_settle_says_so_aloud_once_a_minute(
    shop: Shop, own_server: EmbeddedServer
) -> None:
    employ(shop, own_server, "-xreadgroup")
    worker = shop.worker().wait_ready()
    shop.publish("keyed", 5)
    wait_until(lambda: [line for line in refusals(shop) if "xreadgroup" in line.lower()], 40, "the refusal")
    lines = [line for line in refusals(shop) if "xreadgroup" in line.lower()]
    assert " WARNING " in lines[0]
    assert re.search(rf"{shop.bus.settings.prefix}:{{\w+:\d+}}, group \w+", lines[0])
    # once it is allowed again the worker goes on by itself
    user_url(own_server, "worker", granted(shop.bus.settings.prefix))
    shop.wait_idle("keyed")
    assert len([line for line in refusals(shop) if "xreadgroup" in line.lower()]) <= 4  # one a process
    worker.stop()


def test_what_a_worker_may_not_do_is_refused(shop: Shop, own_server: EmbeddedServer) -> None:
    bus = as_user(own_server, "worker", granted(shop.bus.settings.prefix))
    for command in (("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "SET", "appendonly", "no"), ("ACL", "LIST"),
                    ("GET", "another"), ("SET", "another", "1"), ("SHUTDOWN",),
                    ("EVAL", "return redis.call('GET', 'another')", "0"), ("CLIENT", "KILL", "ID", "1"),
                    ("PUBLISH", "a", "b")):  # fmt: skip
        (reply,) = bus.client.pipe([command])
        assert is_forbidden(reply), (command, reply)
    bus.close()
