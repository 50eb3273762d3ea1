"""What somebody removes before a group was given it is counted for that group: exactly, and once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from bus import doctor, observe
from bus.cli import groups as terminal
from bus.client import Bus
from bus.errors import Forbidden
from bus.observe.loss import LastLoss
from bus.operating.groups import delete
from bus.streams.connect import check
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.upkeep import losses, retention
from tests import acls

pytestmark = pytest.mark.both_servers

GROUPS = ("first", "second", "third")


class Ledger:
    """One partition with three groups, and beside Redis the truth about each message."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.stream = bus.keys.partition("orders", 0).stream
        self.ids: list[str] = []
        self.given: dict[str, set[str]] = {group: set() for group in GROUPS}
        self.lost: dict[str, set[str]] = {group: set() for group in GROUPS}
        self.there: set[str] = set()

    def call(self, *command: Any) -> Any:
        return self.bus.client.call(*command)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.ids.append(self.bus.publish("orders", "x").id)
        self.there |= set(self.ids[-count:]) if count else set()

    def give(self, group: str, count: int, *, look: bool = True) -> None:
        """Upkeep looks every 30 s: here after it, unless the test is about what happens in between."""
        reply = self.call("XREADGROUP", "GROUP", group, "0", "COUNT", count, "STREAMS", self.stream, ">")
        self.given[group] |= {entry[0].decode() for entry in reply[0][1]} if reply else set()
        if look:
            losses.look(self.bus)

    def trim(self, keep: int) -> None:
        self.call("XTRIM", self.stream, "MAXLEN", keep)
        self._removed()

    def remove(self, *ids: str) -> None:
        self.call("XDEL", self.stream, *ids)
        self._removed()

    def _removed(self) -> None:
        left = {entry[0].decode() for entry in self.call("XRANGE", self.stream, "-", "+")}
        gone, self.there = self.there - left, left
        for group in GROUPS:
            self.lost[group] |= gone - self.given[group]

    def counted(self) -> dict[str, int | None]:
        return {one.group: one.lost for one in observe.groups(self.bus, "orders")}

    def truth(self) -> dict[str, int]:
        return {group: len(lost) for group, lost in self.lost.items()}

    def check(self) -> None:
        losses.look(self.bus)
        assert self.counted() == self.truth()
        assert losses.look(self.bus) == [], "counted again"
        assert self.counted() == self.truth()
        assert {one.lost_maybe or 0 for one in observe.groups(self.bus, "orders")} == {0}

    def check_limits(self, groups: Sequence[str] = GROUPS) -> None:
        truth = self.truth()
        for one in observe.groups(self.bus, "orders"):
            if one.group not in groups:
                continue
            surely, most = one.lost or 0, (one.lost or 0) + (one.lost_maybe or 0)
            assert surely <= truth[one.group] <= most, one.group


@pytest.fixture
def ledger(server: EmbeddedServer, prefix: str) -> Iterator[Ledger]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", retention="1d")
    bus.registry.project(bus.declared.specs().values())
    bus.registry.declare_groups([GroupSpec(topic="orders", name=group) for group in GROUPS])
    losses.look(bus)
    yield Ledger(bus)
    bus.close()


def test_unread_messages_that_are_trimmed_are_counted_for_each_group_by_its_position(ledger: Ledger) -> None:
    # given groups that were given 0, 4 and 10 of 10 messages
    ledger.add(10)
    ledger.give("second", 4)
    ledger.give("third", 10)
    ledger.check()

    # when somebody trims all but 3
    ledger.trim(keep=3)

    # then each has lost what it was not given
    losses.look(ledger.bus)
    assert ledger.counted() == ledger.truth() == {"first": 7, "second": 3, "third": 0}
    ledger.check()


def test_where_they_were_and_when_that_was_found_is_kept_and_told(ledger: Ledger) -> None:
    ledger.add(5)
    ledger.give("second", 2)
    ledger.give("third", 5)
    ledger.trim(keep=1)

    told = [str(loss) for loss in losses.look(ledger.bus)]

    assert told == [
        "Group first lost 4 messages of orders/0: they were removed from Redis before it was given them",
        "Group second lost 2 messages of orders/0: they were removed from Redis before it was given them",
    ]
    (place,) = observe.group(ledger.bus, "orders", "second")[1]
    assert place.lost_last is not None
    assert (place.lost_last.count, place.lost_last.after) == (2, ledger.ids[1])
    assert place.lost_last.before == ledger.ids[4]
    assert abs(place.lost_last.found - datetime.now(UTC)) < timedelta(minutes=1)
    (finding,) = [found for found in doctor.examine(ledger.bus) if found.check == "lost"]
    assert finding.level == "error"
    found_at = f"{place.lost_last.found:%Y-%m-%d %H:%M:%S} UTC"
    between = f"after {ledger.ids[1]} and up to {ledger.ids[4]}"
    assert f"second of orders: 2 (last in partition 0: 2 {between}, found {found_at})" in finding.text
    assert "first of orders: 4 (last in partition 0: 4 after 0-0 and up to" in finding.text


def test_the_verdict_of_a_group_says_how_many_it_lost_where_and_when_that_was_found(
    ledger: Ledger, server: EmbeddedServer, settings: Any, admin_client: Client
) -> None:
    ledger.add(5)
    ledger.give("second", 2)
    ledger.trim(keep=1)
    losses.look(ledger.bus)
    ledger.give("second", 5)  # nothing waits, or the verdict would be that no worker serves it
    ledger.call("XACK", ledger.stream, "second", *ledger.ids)

    (place,) = observe.group(ledger.bus, "orders", "second")[1]
    assert place.lost_last is not None
    settings.BUS = {"URL": server.url, "PREFIX": ledger.bus.settings.prefix}
    page = admin_client.get(reverse("admin:jitney_group_page", args=["orders", "second"])).content.decode()
    found_at = f"{timezone.localtime(place.lost_last.found):%Y-%m-%d %H:%M:%S %Z}"
    assert (
        "Messages were removed from Redis before this group was given them; last in partition 0: "
        f"2 after {ledger.ids[1]} and up to {ledger.ids[4]}, found {found_at}."
    ) in page


def test_of_several_partitions_with_losses_the_group_tells_of_the_one_that_was_found_last(
    ledger: Ledger,
) -> None:
    # given losses in two partitions, found one after the other by the server's clock
    ledger.bus.topic("pairs", partitions=2, retention="1d")
    ledger.bus.registry.project(ledger.bus.declared.specs().values())
    ledger.bus.registry.declare_groups([GroupSpec(topic="pairs", name="first")])
    for partition, at in ((0, 2_000), (1, 1_000)):
        last = b'{"n":3,"maybe":0,"after":"1-0","before":"4-0","at":%d}' % at
        state = ledger.bus.keys.partition("pairs", partition).state("first")
        ledger.call("HSET", state, "lost_last", last, "lost", 3)
    (snapshot,) = observe.groups(ledger.bus, "pairs")
    assert (snapshot.lost, snapshot.lost_last_partition) == (6, 0)
    (finding,) = [found for found in doctor.examine(ledger.bus) if found.check == "lost"]
    assert "first of pairs: 6 (last in partition 0: 3 after 1-0 and up to 4-0" in finding.text
    assert finding.level == "warning"  # that was long ago


def test_nothing_is_lost_by_trimming_what_was_given_or_by_retention(ledger: Ledger) -> None:
    ledger.add(6)
    for group in GROUPS:
        ledger.give(group, 4)
        ledger.call("XACK", ledger.stream, group, *ledger.ids[:4])
    ledger.trim(keep=4)
    ledger.check()
    spec = ledger.bus.registry.spec("orders")
    assert spec.retention is not None
    short = type(spec)(name="orders", partitions=1, retention=timedelta(milliseconds=1))
    assert retention.trim(ledger.bus, short) == 1
    for group in GROUPS:
        ledger.give(group, 2)
    ledger.check()
    assert set(ledger.truth().values()) == {0}


def test_pending_messages_that_are_trimmed_are_not_counted_as_unread(ledger: Ledger) -> None:
    ledger.add(8)
    ledger.give("first", 5)
    ledger.trim(keep=0)

    losses.look(ledger.bus)

    assert ledger.counted() == ledger.truth() == {"first": 3, "second": 8, "third": 8}


@pytest.mark.parametrize("given", [0, 2, 3, 5, 9])
def test_messages_removed_from_the_middle_are_counted_where_they_lay_ahead(
    ledger: Ledger, given: int
) -> None:
    ledger.add(10)
    if given:
        ledger.give("first", given)
    ledger.check()
    ledger.remove(ledger.ids[2], ledger.ids[4], ledger.ids[8])
    ledger.check()
    ledger.trim(keep=2)
    ledger.check()
    ledger.add(3)
    for group in GROUPS:
        ledger.give(group, 100)
    ledger.check()


def test_a_whole_stream_that_is_emptied_again_and_again(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.add(5)
        ledger.give("first", 2)
        ledger.trim(keep=0)
        ledger.check()
    ledger.add(2)
    ledger.give("second", 1)
    ledger.check()


@pytest.mark.parametrize("seed", range(8))
def test_the_count_is_that_of_a_ledger_whatever_happens_in_which_order(ledger: Ledger, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        match dice.choice(["add", "add", "give", "give", "trim", "remove"]):
            case "add":
                ledger.add(dice.randint(1, 6))
            case "give":
                ledger.give(dice.choice(GROUPS), dice.randint(1, 6))
            case "trim":
                ledger.trim(keep=dice.randint(0, max(1, len(ledger.there))))
                ledger.check()
            case "remove" if ledger.there:
                ledger.remove(*dice.sample(sorted(ledger.there), min(2, len(ledger.there))))
                ledger.check()


def test_a_group_that_reads_on_behind_a_gap_gets_the_number_or_an_upper_limit(
    ledger: Ledger, request: pytest.FixtureRequest
) -> None:
    # given one that has read 2 of 10 at the last look, reads 3 more, and jumps over 2 that were trimmed
    ledger.add(10)
    ledger.give("first", 2)
    ledger.give("first", 3, look=False)
    ledger.trim(keep=3)
    ledger.give("first", 1, look=False)

    losses.look(ledger.bus)

    (one,) = [one for one in observe.groups(ledger.bus, "orders") if one.group == "first"]
    if observe.server(ledger.bus).kind == "Redis":
        assert (one.lost, one.lost_maybe) == (2, 0)
    else:
        assert (one.lost, one.lost_maybe) == (0, 5)
    assert losses.look(ledger.bus) == []


@pytest.mark.parametrize("given", [1, 2, 3])
def test_what_is_removed_from_the_middle_is_seen_though_a_group_reads_past_it_before_the_next_look(
    ledger: Ledger, given: int
) -> None:
    # given 4 messages of which one is removed, and a group that reads up to the gap, over it, or to the end
    ledger.add(4)
    ledger.remove(ledger.ids[1])
    ledger.give("first", given, look=False)

    losses.look(ledger.bus)

    assert ledger.truth()["first"] == 1
    ledger.check_limits()
    assert losses.look(ledger.bus) == [], "counted again"


def test_a_limit_is_counted_where_the_server_may_have_forgotten_what_the_group_had_read(
    ledger: Ledger,
) -> None:
    # given a last look in another run of the server
    ledger.add(6)
    ledger.give("first", 2)
    state = ledger.bus.keys.partition("orders", 0).state("first")
    look = orjson.loads(ledger.call("HGET", state, "look"))
    ledger.call("HSET", state, "look", orjson.dumps({**look, "run": "before"}))
    # when the group reads on past what was trimmed
    ledger.give("first", 2, look=False)
    ledger.trim(keep=1)
    ledger.give("first", 1, look=False)

    losses.look(ledger.bus)

    assert ledger.truth()["first"] == 1
    ledger.check_limits(["first"])


@pytest.mark.parametrize("seed", range(10))
def test_the_truth_is_within_what_is_counted_whenever_somebody_looks(ledger: Ledger, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(60):
        match dice.choice(["add", "add", "give", "give", "trim", "remove", "remove", "look"]):
            case "add":
                ledger.add(dice.randint(1, 6))
            case "give":
                ledger.give(dice.choice(GROUPS), dice.randint(1, 6), look=False)
            case "trim" if dice.random() < 0.3:
                ledger.trim(keep=dice.randint(0, max(1, len(ledger.there))))
            case "remove" if ledger.there:
                ledger.remove(*dice.sample(sorted(ledger.there), min(2, len(ledger.there))))
            case "look":
                losses.look(ledger.bus)
                ledger.check_limits()
    losses.look(ledger.bus)
    ledger.check_limits()


@pytest.mark.django_db
@pytest.mark.parametrize("surely", [0, 1], ids=["only a limit", "some surely"])
def test_where_only_a_limit_is_known_no_text_gives_an_exact_number(
    ledger: Ledger, surely: int, server: EmbeddedServer, settings: Any, admin_client: Client
) -> None:
    if observe.server(ledger.bus).kind == "Redis":
        pytest.skip("the number is known here: see the test before")
    # given a group that may have lost 5, and surely lost one more or none: that one lies ahead of it
    ledger.add(10)
    ledger.give("first", 2)
    ledger.give("first", 3, look=False)
    ledger.trim(keep=3)
    ledger.give("first", 1, look=False)
    if surely:
        ledger.remove(ledger.ids[8])

    (told,) = [str(loss) for loss in losses.look(ledger.bus) if loss.group == "first"]

    (one,) = [one for one in observe.groups(ledger.bus, "orders") if one.group == "first"]
    (place,) = observe.group(ledger.bus, "orders", "first")[1]
    assert one.lost == surely
    assert one.lost_maybe is not None
    words = f"{surely} to {surely + one.lost_maybe}" if surely else f"up to {one.lost_maybe}"
    assert one.lost_maybe >= 2  # the truth is among them
    assert f"Group first lost {words} messages" in told
    assert terminal.lost_words(one) == terminal.lost_words(place) == words
    assert f"before they were given, last {words} after" in terminal.loss_lines([place])[0]
    (finding,) = [found for found in doctor.examine(ledger.bus) if found.check == "lost"]
    assert f"first of orders: {words}" in finding.text
    settings.BUS = {"URL": server.url, "PREFIX": ledger.bus.settings.prefix}
    page = admin_client.get(reverse("admin:jitney_group_page", args=["orders", "first"])).content.decode()
    assert f"<dd>{words}</dd>" in page
    assert f"{words} removed before they were given" in page


def test_the_last_loss_that_an_older_version_kept_is_a_limit() -> None:
    last = LastLoss.load(b'{"n":5,"after":"1-0","before":"6-0","at":1764294000000}')
    assert last is not None
    assert last.words == "up to 5"


@pytest.mark.parametrize("after", ['"\u202e"', '"5"', "5", "null", '"1-99999999999999999999999"'])
def test_a_last_loss_whose_places_are_no_ids_is_somebody_elses(after: str) -> None:
    raw = f'{{"n":5,"maybe":0,"after":{after},"before":"6-0","at":1764294000000}}'
    assert LastLoss.load(raw.encode()) is None


def refused(ledger: Ledger, server: EmbeddedServer, command: str = "info") -> Bus:
    """The bus of a user who may not ask for INFO."""
    granted = ["on", f">{acls.PASSWORD}", "~*", "&*", "+@all", f"-{command}"]
    return acls.as_user(server, f"without-{command}", granted, prefix=ledger.bus.settings.prefix)


def test_without_info_losses_are_counted_as_long_as_the_server_is_that_of_the_last_look(
    ledger: Ledger, server: EmbeddedServer
) -> None:
    bus = refused(ledger, server)
    with pytest.raises(Forbidden):
        check(bus.client.pipe([("INFO", "server")])[0])
    # given a look by somebody who may ask (that of the fixture), when messages go
    ledger.add(10)
    ledger.give("second", 4, look=False)
    losses.look(bus)
    ledger.trim(keep=3)
    # then all are counted, once
    assert {loss.group: (loss.count, loss.at_most) for loss in losses.look(bus)} == {
        "first": (7, 0), "second": (3, 0), "third": (7, 0)
    }  # fmt: skip
    assert losses.look(bus) == []
    assert ledger.counted() == ledger.truth()
    ledger.check()
    bus.close()


def test_losses_are_counted_though_the_time_may_not_be_asked_for(
    ledger: Ledger, server: EmbeddedServer
) -> None:
    bus = refused(ledger, server, "time")
    ledger.add(10)
    ledger.give("second", 4, look=False)
    ledger.trim(keep=3)
    losses.look(bus)
    assert ledger.counted() == ledger.truth() == {"first": 7, "second": 3, "third": 7}
    assert losses.look(bus) == []
    bus.close()


def test_without_info_and_without_a_look_before_nothing_is_said_and_nothing_lost_of_what_comes_to_be_known(
    ledger: Ledger, server: EmbeddedServer
) -> None:
    # given that nobody who may ask for INFO has looked so far
    bus = refused(ledger, server)
    for group in GROUPS:
        ledger.call("HDEL", bus.keys.partition("orders", 0).state(group), "look")
    ledger.add(10)
    ledger.trim(keep=3)
    # then no number is made up
    assert losses.look(bus) == []
    assert set(ledger.counted().values()) == {0}
    bus.close()
    # and who may ask finds all of it where the server itself keeps how far groups have read
    found = {loss.group: loss.count for loss in losses.look(ledger.bus)}
    if observe.server(ledger.bus).kind == "Redis":
        assert found == {}
    else:
        assert found == dict.fromkeys(GROUPS, 7)


def test_a_group_that_is_deleted_and_made_again_begins_to_count_anew(ledger: Ledger) -> None:
    ledger.add(5)
    ledger.trim(keep=1)
    losses.look(ledger.bus)
    delete(ledger.bus, "orders", "first")
    ledger.bus.registry.declare_groups([GroupSpec(topic="orders", name="first")])

    assert losses.look(ledger.bus) == []
    assert (ledger.counted()["first"] or 0) == 0


def test_a_stream_that_is_lost_and_made_again_is_no_loss_of_messages_ahead(ledger: Ledger) -> None:
    ledger.add(5)
    losses.look(ledger.bus)
    ledger.call("DEL", ledger.stream)
    assert losses.look(ledger.bus) == []
    ledger.bus.registry.restore_partition("orders", 0)
    ledger.add(9)

    assert losses.look(ledger.bus) == []


def test_looking_writes_nothing_where_nothing_has_changed(ledger: Ledger) -> None:
    ledger.add(5)
    losses.look(ledger.bus)
    state = ledger.bus.keys.partition("orders", 0).state("first")
    before = ledger.call("HGETALL", state)
    changes = ledger.call("INFO", "persistence")
    losses.look(ledger.bus)
    assert ledger.call("HGETALL", state) == before

    def dirty(info: bytes) -> bytes:
        return next(line for line in info.splitlines() if line.startswith(b"rdb_changes_since_last_save"))

    assert dirty(ledger.call("INFO", "persistence")) == dirty(changes)


def test_the_lag_of_a_group_behind_a_gap_is_right_afterwards(ledger: Ledger) -> None:
    ledger.add(10)
    ledger.trim(keep=4)
    losses.look(ledger.bus)
    ledger.give("first", 1)

    (raw,) = [
        dict(zip(group[::2], group[1::2], strict=True))
        for group in ledger.call("XINFO", "GROUPS", ledger.stream)
        if group[1] == b"first"
    ]
    assert raw[b"lag"] == 3
