"""A new group says what it begins with before its first message, or is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from bus import doctor
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.errors import ConfigurationError
from bus.operating import groups
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.upkeep import newcomers
from bus.upkeep.newcomers import Newcomers, backlog
from bus.values import Message
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=2)
    bus.publish_many("orders", range(32), key=str)
    yield bus
    bus.close()


def limited(bus: Bus, limit: int) -> Bus:
    return Bus(bus.settings.url, prefix=bus.settings.prefix, new_group_limit=limit)


def test_a_new_group_with_messages_is_announced_before_it_is_made(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[bool] = []

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            streams = [bus.keys.partition("orders", number).stream for number in range(2)]
            made.extend(bool(bus.client.call("XINFO", "GROUPS", stream)) for stream in streams)

    logger = logging.getLogger("bus.groups")
    handler = Look()
    logger.addHandler(handler)
    try:
        Newcomers(bus).declare([GroupSpec(topic="orders", name="mailer")])
        Newcomers(bus).declare([GroupSpec(topic="orders", name="mailer")])
    finally:
        logger.removeHandler(handler)

    assert made == [False, False]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "Group mailer on orders is new: it begins at the beginning, 32 messages. `start=` of its handler, or "
        "`bus group create orders mailer --start latest` before its first worker, changes that."
    )


@pytest.mark.both_servers
def test_of_many_workers_that_start_at_once_one_announces(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    barrier = threading.Barrier(8)

    def start() -> None:
        newcomers = Newcomers(bus)
        barrier.wait()
        newcomers.declare([GroupSpec(topic="orders", name="mailer")])

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(caplog.records) == 1
    (group,) = bus.registry.groups("orders")
    assert group.born


@pytest.mark.parametrize(("start", "count"), [("earliest", 32), ("latest", 0), ("{id}", 20)])
def test_what_a_group_begins_with_is_counted(
    server: EmbeddedServer, prefix: str, start: str, count: int
) -> None:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders")
    ids = [bus.publish("orders", number).id for number in range(32)]
    spec = GroupSpec(topic="orders", name="mailer", start=start.format(id=ids[11]))

    assert backlog(bus, spec).count == count
    bus.close()


def test_nothing_is_said_of_a_group_that_begins_with_nothing(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    Newcomers(bus).declare([GroupSpec(topic="orders", name="mailer", start="latest")])

    assert caplog.records == []


def test_a_group_beyond_the_limit_is_not_made_and_the_others_are(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # given
    bus.topic("calm")
    bus.publish("calm", 1)
    clock = [0.0]
    strict = limited(bus, 31)
    found = Newcomers(strict, clock=lambda: clock[0])
    wanted = [GroupSpec(topic="orders", name="mailer"), GroupSpec(topic="calm", name="mailer")]
    places = [(spec.topic, spec.name) for spec in wanted]

    # when
    found.declare(wanted)

    # then it is refused, said, and named by doctor
    known = {(group.topic, group.name) for group in bus.registry.groups()}
    assert known == {("calm", "mailer")}
    assert found.refused == {("orders", "mailer")}
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "Group mailer on orders is new and is not made: it would begin with 32 messages" in told[0]
    (finding,) = [one for one in doctor.examine(bus) if one.check == "refused"]
    assert "mailer on orders (32 messages)" in finding.text

    # and it is looked at again once a minute, or when somebody has made it
    assert not found.must_declare(places, known)
    clock[0] = 61.0
    assert found.must_declare(places, known)
    found.declare(wanted)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
    groups.create(bus, "orders", "mailer", start="latest")
    assert found.must_declare(places, known | {("orders", "mailer")})
    found.declare(wanted)
    assert found.refused == frozenset()
    assert list(newcomers.refusals(bus)) == []
    strict.close()


def test_a_worker_goes_on_with_its_other_groups_and_with_the_refused_one_once_it_is_made(
    bus: Bus, transactional_db: None
) -> None:
    bus.topic("calm")
    bus.publish("calm", "hello")
    seen: list[tuple[str, object]] = []

    def handle(message: Message) -> None:
        seen.append((message.topic, message.value))

    strict = limited(bus, 5)
    strict.declared.add(bus.registry.spec("calm"))
    subscriptions = [
        Subscription(topic="orders", group="mailer", handler=handle, ordering="none"),
        Subscription(topic="calm", group="mailer", handler=handle),
    ]
    with InlineWorker(strict, subscriptions):
        wait_until(lambda: seen == [("calm", "hello")], 20, "the message of the group that is served")
        groups.create(bus, "orders", "mailer", start="latest", ordering="none")
        bus.publish("orders", "new")
        wait_until(lambda: ("orders", "new") in seen, 20, "the message of the group that was made by hand")
    assert len(seen) == 2
    strict.close()


def test_groups_with_messages_that_nobody_serves_are_named_with_what_to_do(bus: Bus) -> None:
    bus.registry.declare_groups([GroupSpec(topic="orders", name="mails")])

    (finding,) = [one for one in doctor.examine(bus) if one.check == "unserved"]

    assert finding.text == "Groups with messages that no worker serves: mails of orders (lag 32)."
    assert "bus group delete" in finding.hint


@pytest.mark.parametrize("limit", [-1, True, 1.5, "3"])
def test_a_wrong_limit_is_an_error(server: EmbeddedServer, limit: object) -> None:
    with pytest.raises(ConfigurationError, match="NEW_GROUP_LIMIT"):
        Bus(server.url, new_group_limit=limit)


def test_a_refused_group_that_somebody_made_is_not_named_any_more_though_its_worker_is_gone(bus: Bus) -> None:
    strict = limited(bus, 31)
    Newcomers(strict).declare([GroupSpec(topic="orders", name="mailer")])
    assert [one.check for one in doctor.examine(bus) if one.check == "refused"] == ["refused"]

    groups.create(bus, "orders", "mailer", start="latest")

    assert [one.text for one in doctor.examine(bus) if one.check == "refused"] == []
    strict.close()


def test_junk_among_the_refusals_is_passed_over(bus: Bus) -> None:
    for number, junk in enumerate(("junk", "[1]", '{"at": 1e300, "messages": 3}', b"\xff")):
        bus.client.call("HSET", bus.keys.refused, f"a/{number}", junk)

    assert list(newcomers.refusals(bus)) == []


@pytest.mark.both_servers
def test_a_refusal_is_noted_while_memory_is_full(bus: Bus) -> None:
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        Newcomers(limited(bus, 31)).declare([GroupSpec(topic="orders", name="mailer")])
        (finding,) = [one for one in doctor.examine(bus) if one.check == "refused"]
    finally:
        bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert "mailer on orders (32 messages)" in finding.text


def test_a_refusal_that_cannot_be_noted_is_told_and_stops_nothing(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # given a user who may do everything but write to the notes
    bus.topic("calm")
    bus.publish("calm", 1)
    rules = f"%RW~{bus.keys.prefix}:[^r]* %RW~{bus.keys.prefix}:{{* %R~*"
    user = f"clerk-{bus.keys.prefix}"
    bus.client.call("ACL", "SETUSER", user, "on", ">Sesame", "+@all", "&*", *rules.split())
    clerk = Bus(
        bus.settings.url, prefix=bus.keys.prefix, new_group_limit=31, username=user, password="Sesame"
    )
    # when
    found = Newcomers(clerk)
    found.declare([GroupSpec(topic=topic, name="mailer") for topic in ("orders", "calm")])
    # then
    assert {group.topic for group in bus.registry.groups()} == {"calm"}
    assert found.refused == {("orders", "mailer")}
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if text.startswith("Refused groups cannot be noted for `bus doctor`: ")]
    clerk.close()
    bus.client.call("ACL", "DELUSER", user)
