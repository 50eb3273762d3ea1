"""The outbox: published with the transaction or not at all, stored once, in the order of the rows."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

import bus as jitney
from bus import default
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.errors import BusUnavailable, InvalidMessage, NotInTransaction, PublishUncertain, UnknownTopic
from bus.format import netstrings
from bus.models import OutboxRow, OutboxShard, Topic
from bus.streams.commands import scan
from bus.transactions import outbox
from bus.transactions.outbox import Relay, boot_time
from bus.values import TopicSpec
from tests.waiting import wait_until
from workers.upkeep.chores import RELAY_SECONDS, Chores
from workers.upkeep.threads import Step, Upkeep


@pytest.fixture
def bus(server: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
    bus.topic("orders", partitions=4)
    bus.registry.project(bus.declared.specs().values())
    monkeypatch.setattr(default, "get", lambda: bus)
    yield bus
    bus.close()


def values(bus: Bus, topic: str = "orders", partitions: int = 4) -> list[Any]:
    """All that is stored, partition by partition."""
    found = []
    for number in range(partitions):
        entries = bus.client.call("XRANGE", bus.keys.partition(topic, number).stream, "-", "+")
        found += [json.loads(entry[1][1]) for entry in entries]
    return found


def publish(*numbers: int, key: str | None = "A1", **options: Any) -> None:
    with transaction.atomic():
        for number in numbers:
            jitney.publish_in_transaction("orders", number, key=key, **options)


# ---------------------------------------------------------------------- writing


def test_a_message_is_stored_if_the_transaction_commits_and_not_if_it_is_rolled_back(bus: Bus) -> None:
    def fail() -> None:
        jitney.publish_in_transaction("orders", 2)
        raise ZeroDivisionError

    publish(1)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        fail()
    assert values(bus) == []
    assert Relay(bus, "default").run() == 1
    assert values(bus) == [1]
    assert not OutboxRow.objects.exists()


def test_outside_of_a_transaction_it_is_refused(bus: Bus) -> None:
    with pytest.raises(NotInTransaction, match="inside of"):
        bus.topic("orders", partitions=4).publish_in_transaction(1)
    assert not OutboxRow.objects.exists()


def test_it_is_checked_at_the_call(bus: Bus) -> None:
    with transaction.atomic():
        with pytest.raises(InvalidMessage):
            jitney.publish_in_transaction("orders", object())
        with pytest.raises(InvalidMessage):
            jitney.publish_in_transaction("orders", 1, message_id="")
        with pytest.raises(InvalidMessage, match="zero byte"):
            jitney.publish_in_transaction("orders", 1, message_id="a\0b")
        with pytest.raises(UnknownTopic):
            jitney.publish_in_transaction("nowhere", 1)
    assert not OutboxRow.objects.exists()


def test_it_needs_no_redis_for_topics_that_code_or_the_database_knows(bus: Bus) -> None:
    away = Bus("redis://127.0.0.1:1/0", timeout=0.1, declared=bus.declared)
    Topic.objects.create(name="returns", partitions=1)
    with transaction.atomic():
        away.publish_in_transaction("orders", 1)
        away.publish_in_transaction("returns", 1)
        with pytest.raises(BusUnavailable):
            away.publish_in_transaction("nowhere", 1)
    assert OutboxRow.objects.count() == 2


def test_key_headers_bytes_and_message_id_arrive_as_by_publish(bus: Bus) -> None:
    value, options = b"\x00\xff", {"key": "A1", "headers": {"tenant": "de"}}
    jitney.publish("orders", value, **options, message_id="one")
    with transaction.atomic():
        jitney.publish_in_transaction(
            "orders", b"\x00\xff", key="A1", headers={"tenant": "de"}, message_id="two"
        )
        jitney.publish_in_transaction(
            "orders", b"\x00\xff", key="A1", headers={"tenant": "de"}, message_id="one"
        )
    assert Relay(bus, "default").run() == 2
    partition = jitney.publish("orders", 0, key="A1").partition
    entries = bus.client.call("XRANGE", bus.keys.partition("orders", partition).stream, "-", "+")
    assert len(entries) == 3
    assert entries[0][1] == entries[1][1]


def test_fields_survive_packing() -> None:
    parts = [b"v", b"", b"k", b"5:hello,", b"h", bytes(range(256))]
    assert netstrings.unpack(netstrings.pack(parts)) == parts


# ---------------------------------------------------------------------- relay


def test_messages_of_a_key_keep_their_order_over_many_pages(bus: Bus) -> None:
    publish(*range(1200))
    relay = Relay(bus, "default")
    assert relay.run() == 1200
    assert values(bus) == list(range(1200))
    assert relay.run() == 0


def test_a_page_is_bounded_in_bytes_but_never_empty(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    send = bus.publisher.send_deduped

    def count(topic: str, partition: int, some: Any, **how: Any) -> Any:
        sizes.append(len(some))
        return send(topic, partition, some, **how)

    monkeypatch.setattr(bus.publisher, "send_deduped", count)
    monkeypatch.setattr(outbox, "BYTES_A_WRITE", 300)
    with transaction.atomic():
        for size in (1000, 100, 100, 100, 1000):
            jitney.publish_in_transaction("orders", "x" * size, key="A1")
    assert Relay(bus, "default").run() == 5
    assert sizes == [1, 2, 1, 1]


@pytest.mark.both_servers
def test_a_relay_that_dies_before_it_deletes_doubles_nothing(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(*range(10))
    send = bus.publisher.send_deduped

    def send_and_die(*args: Any, **how: Any) -> None:
        send(*args, **how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bus.publisher, "send_deduped", send_and_die)
        with pytest.raises(KeyboardInterrupt):
            Relay(bus, "default").run()
    assert OutboxRow.objects.count() == 10
    # Not even if the next one comes long after the dedupe window: Redis knows the ids for a day
    assert all(80_000 < seconds <= outbox.KEEP_SECONDS for seconds in known_for(bus))
    publish(10)
    assert Relay(bus, "default").run() == 11
    assert values(bus) == list(range(11))
    # And once the rows are gone, no longer than other ids
    assert len(known_for(bus)) == 11
    assert all(0 < seconds <= bus.settings.dedupe_window for seconds in known_for(bus))


def known_for(bus: Bus) -> list[int]:
    """Seconds for which Redis will know each message_id."""
    return [bus.client.call("TTL", key) for key in scan(bus.client, f"{bus.settings.prefix}:*:once:*")]


def test_a_reply_that_was_lost_is_asked_for_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(*range(3))
    send = bus.publisher.send_deduped

    def lose(*args: Any, **how: Any) -> None:
        send(*args, **how)
        raise PublishUncertain("lost")

    relay = Relay(bus, "default")
    with monkeypatch.context() as patch:
        patch.setattr(bus.publisher, "send_deduped", lose)
        with pytest.raises(PublishUncertain):
            relay.run()
    assert relay.run() == 3
    assert values(bus) == [0, 1, 2]


def test_rows_that_were_read_too_long_ago_are_read_again(bus: Bus) -> None:
    publish(1)
    moments = iter([0.0, bus.settings.dedupe_window / 4 + 1, 1000.0, 1000.1, 1000.2, 1000.3])
    relay = Relay(bus, "default", clock=lambda: next(moments))
    assert relay.run() == 0  # it was frozen between reading and sending
    assert (values(bus), OutboxRow.objects.count()) == ([], 1)
    assert relay.run() == 1


def test_the_clock_of_the_relay_goes_on() -> None:
    assert boot_time() <= boot_time()


def test_what_is_wrong_with_one_topic_stops_no_other(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    Topic.objects.create(name="aaa", partitions=1)
    with transaction.atomic():
        jitney.publish_in_transaction("aaa", 1)
    Topic.objects.all().delete()  # nobody knows it any more
    publish(2)
    relay = Relay(bus, "default")
    assert relay.run() == 1
    assert relay.run() == 0
    assert values(bus) == [2]
    assert relay.failed == {("aaa", 0)}
    (record,) = [record for record in caplog.records if record.name == "bus.outbox"]
    assert record.levelno == logging.ERROR
    assert "aaa/0" in record.getMessage()


def test_rows_of_another_bus_in_the_same_database_are_left_alone(bus: Bus, server: Any) -> None:
    publish(1)
    assert Relay(Bus(server.url, prefix="another", declared=bus.declared), "default").run() == 0
    assert outbox.backlog(bus, "default").rows == 1


def test_each_partition_gets_its_turn(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WRITES_A_VISIT", 1)
    monkeypatch.setattr(outbox, "MAX_DEDUPED", 2)
    for key in ("a", "b", "c", "d", "e", "f"):
        publish(*range(10), key=key)
    relay, touched = Relay(bus, "default"), []
    for _ in range(4):
        relay.run(seconds=0)  # one partition, then the time is over
        touched.append(relay._last)
    assert len(set(touched)) == len(relay._refs())


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_two_transactions_that_commit_in_the_reverse_order_of_their_ids_lose_nothing(bus: Bus) -> None:
    # Given a transaction that has written its row and is not committed
    written, go_on = threading.Event(), threading.Event()

    def early() -> None:
        with transaction.atomic():
            jitney.publish_in_transaction("orders", "early", key="A1")
            written.set()
            assert go_on.wait(20)
        connection.close()

    thread = threading.Thread(target=early)
    thread.start()
    assert written.wait(20)

    # when one with a higher id commits before, and is relayed
    with transaction.atomic():
        jitney.publish_in_transaction("orders", "late", key="A1")
    relay = Relay(bus, "default")
    assert relay.run() == 1
    assert values(bus) == ["late"]

    # then the first is relayed when it has committed
    go_on.set()
    thread.join(20)
    assert relay.run() == 1
    assert values(bus) == ["late", "early"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_partition_that_another_relay_has_locked_is_passed_over(bus: Bus) -> None:
    publish(1, key="a")
    publish(2, key="b")
    first = OutboxRow.objects.order_by("topic", "partition").first()
    assert first is not None
    shard = OutboxShard.objects.create(prefix=bus.settings.prefix, topic="orders", partition=first.partition)
    locked, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with transaction.atomic():
            OutboxShard.objects.select_for_update().get(pk=shard.pk)
            locked.set()
            assert go_on.wait(20)
        connection.close()

    thread = threading.Thread(target=other)
    thread.start()
    assert locked.wait(20)
    relay = Relay(bus, "default")
    assert relay.run() == 1
    go_on.set()
    thread.join(20)
    assert relay.run() == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_on_sqlite_one_relay_works_at_a_time(bus: Bus) -> None:
    publish(1)
    with Relay(bus, "default")._alone() as first:
        assert first
        assert Relay(bus, "default").run() == 0
    assert Relay(bus, "default").run() == 1


def test_relays_at_the_same_time_keep_order_and_double_nothing(bus: Bus) -> None:
    for start in range(0, 600, 50):
        publish(*range(start, start + 50))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            relay = Relay(bus, "default")
            wait_until(lambda: relay.run() == 0 and not OutboxRow.objects.exists(), 30)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert values(bus) == list(range(600))


def test_order_and_exactness_do_not_rest_on_the_lock(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relay, "_locks", False)
    monkeypatch.setattr(outbox, "MAX_DEDUPED", 3)
    publish(*range(9))
    one, other = Relay(bus, "default"), Relay(bus, "default")
    send = bus.publisher.send_deduped
    nested: list[int] = []

    def overtaken(topic: str, partition: int, some: Any, **how: Any) -> Any:
        if not nested:
            nested.append(1)
            nested.append(len(other._send_page((topic, partition))))
            nested.append(len(other._send_page((topic, partition))))
        return send(topic, partition, some, **how)

    monkeypatch.setattr(bus.publisher, "send_deduped", overtaken)
    ref = one._refs()[0]
    one._send_page(ref)
    while one._send_page(ref):
        pass
    assert nested == [1, 3, 3]
    assert values(bus) == list(range(9))


# ---------------------------------------------------------------------- upkeep, command line, page


def test_upkeep_relays_soon(bus: Bus) -> None:
    upkeep = Upkeep("outbox", [Step(Chores(bus).relay_outbox, RELAY_SECONDS)], is_leader=lambda: True)
    upkeep.start()
    try:
        publish(1)
        wait_until(lambda: values(bus) == [1], 10, "the outbox to be relayed")
    finally:
        upkeep.stop()
        upkeep.join(20)


def run(
    bus: Bus, capsys: pytest.CaptureFixture[str], *arguments: str, operator: Any = Audited
) -> tuple[int, str, str]:
    code = tree.run(Session(lambda: bus, operator), arguments, "bus")
    return (code, *capsys.readouterr())


def test_the_command_line_shows_and_sends_what_waits(bus: Bus, capsys: pytest.CaptureFixture[str]) -> None:
    publish(1, 2)
    code, out, err = run(bus, capsys, "outbox", "status")
    assert code == 0
    assert "2 messages in the outbox, the oldest" in err
    assert "orders" in out
    code, out, _ = run(bus, capsys, "outbox", "status", "--json")
    data = json.loads(out)
    assert (data["rows"], data["partitions"][0]["database"], data["partitions"][0]["rows"]) == (
        2,
        "default",
        2,
    )
    code, out, _ = run(bus, capsys, "outbox", "relay", "--database", "default", "--json")
    assert (code, json.loads(out)) == (0, {"sent": 2, "failed": False})
    assert values(bus) == [1, 2]
    code, _, err = run(bus, capsys, "outbox", "status")
    assert "0 messages in the outbox." in err


def test_the_command_ends_with_1_where_rows_cannot_be_sent(
    bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    Topic.objects.create(name="aaa", partitions=1)
    with transaction.atomic():
        jitney.publish_in_transaction("aaa", 1)
    Topic.objects.all().delete()
    code, _, err = run(bus, capsys, "outbox", "relay")
    assert code == 1
    assert "There is no topic 'aaa'" in err


def test_without_a_project_or_with_a_wrong_database_the_command_says_so(
    bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("status", "relay"):
        code, _, err = run(bus, capsys, "outbox", verb, operator=Direct)
        assert code == 2
        assert "needs the project's database" in err
    code, _, err = run(bus, capsys, "outbox", "relay", "--database", "nowhere")
    assert code == 2
    assert "Those that have: default" in err


def test_the_overview_shows_what_waits_and_since_when(bus: Bus, client: Client) -> None:
    web = Client()
    web.force_login(User.objects.create_superuser("root"))

    def page() -> str:
        return web.get("/admin/jitney/overview/?live=1").content.decode()

    assert 'data-jt-key="outbox"' not in page()
    publish(1, 2)
    assert "2 messages wait in the database" in page()
    assert "jt-late" not in page()
    OutboxRow.objects.update(created=timezone.now() - timedelta(minutes=5))
    assert "jt-late" in page()
    assert "5m" in page()


def test_a_backlog_is_counted_up_to_a_bound(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "COUNTED", 3)
    publish(*range(5))
    found = outbox.backlog(bus, "default")
    assert (found.rows, found.more) == (3, True)


def test_an_idle_relay_asks_the_database_once(bus: Bus, django_assert_num_queries: Any) -> None:
    relay = Relay(bus, "default")
    with django_assert_num_queries(1):
        assert relay.run() == 0
    assert TopicSpec(name="orders", partitions=4) == bus.declared.get("orders")


def test_the_overview_shows_what_waits_also_while_redis_is_away(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Client()
    web.force_login(User.objects.create_superuser("root"))
    publish(1)
    away = Bus("redis://127.0.0.1:1/0", timeout=0.1, prefix=bus.settings.prefix)
    monkeypatch.setattr(default, "get", lambda: away)
    answer = web.get("/admin/jitney/overview/?live=1")
    assert answer.status_code == 503
    assert "1 message waits in the database" in answer.content.decode()
