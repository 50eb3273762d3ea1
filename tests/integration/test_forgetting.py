"""Upkeep raises floors, and deletes the rows that they stand for: never what somebody may still ask for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bus.client import Bus
from bus.errors import StaleLease
from bus.models import InboxFloor, InboxRow, MarkCopy
from bus.operating import deadletters, fates
from bus.transactions import forgetting
from bus.transactions.floor import Floors
from bus.transactions.inbox import Inbox
from bus.values import Message
from tests.integration.places import GROUP, TOPIC, Place, effect, effects, floors, open_ones, rows


@pytest.fixture
def place(server: Any, database: str) -> Iterator[Place]:
    bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
    yield Place(bus)
    bus.close()


@pytest.fixture
def box(database: str) -> Inbox:
    return Inbox(GROUP, "default")


def forget(place: Place) -> int:
    return forgetting.forget(place.bus, "default")


@pytest.mark.both_servers
def test_rows_go_up_to_the_copied_mark_but_for_those_that_are_pending(place: Place, box: Inbox) -> None:
    # Given ten messages that were handled, of which number 3 and the last three were not settled
    messages = place.deliver(10)
    for message in messages:
        box.handle(message, effect)
    place.settle(*messages[:3], *messages[4:7])

    # then nothing goes before the mark is copied
    assert forget(place) == 0
    assert floors() == [(0, 0)]
    place.mark(messages[6].id)

    # and after that what is settled, and no other
    assert forget(place) == 6
    assert rows() == place.pair(messages[3], *messages[7:])
    assert floors() == place.pair(messages[6])
    assert open_ones() == place.pair(messages[3])
    assert forget(place) == 0


def test_pages_of_rows_pending_messages_and_dead_letters_are_read_to_their_end(
    place: Place, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "ROWS_A_STATEMENT", 3)
    monkeypatch.setattr(forgetting, "PENDING_A_SCRIPT", 3)
    monkeypatch.setattr(forgetting, "LETTERS_A_SCRIPT", 2)
    messages = place.deliver(21)
    for message in messages:
        box.handle(message, effect)
    settled, dead, pending = messages[::3], messages[1::3], messages[2::3]
    place.settle(*settled)
    for message in dead:
        place.bury(message)
    assert place.upkeep() == len(settled)
    assert rows() == open_ones() == sorted(place.pair(*dead, *pending))


def test_a_look_at_letters_ends_when_enough_of_them_was_read(
    place: Place, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "LETTER_BYTES_A_SCRIPT", 1)
    dead = place.deliver(5)
    for message in dead:
        place.bury(message)
    other = place.deliver()[0]
    box.handle(other, effect)
    place.settle(other)
    assert place.upkeep() == 1
    assert open_ones() == place.pair(*dead)


def test_what_is_pending_below_the_floor_is_handled_and_what_is_settled_there_is_not(
    place: Place, box: Inbox
) -> None:
    waiting, settled = place.deliver(2)
    box.handle(settled, effect)
    place.settle(settled)
    place.upkeep()
    assert floors() == place.pair(settled)
    box.handle(settled, effect)
    box.handle(waiting, effect)
    box.handle(waiting, effect)
    assert (effects(settled.id), effects(waiting.id)) == (1, 1)
    assert box.handle_batch([settled, waiting], lambda _: pytest.fail("both were handled")) is None  # type: ignore[func-returns-value]


def test_of_a_batch_only_what_is_not_settled_is_handled(place: Place, box: Inbox) -> None:
    waiting, settled = place.deliver(2)
    place.settle(settled)
    box.handle(place.deliver()[0], effect)
    place.mark(settled.id)
    forget(place)
    (fresh,) = place.deliver()
    seen: list[str] = []

    def handler(some: list[Message]) -> list[str]:
        seen.extend(each.id for each in some)
        return []

    box.handle_batch([waiting, settled, fresh], handler)
    assert seen == [waiting.id, fresh.id]


# ---------------------------------------------------------------------- dead letters


def letters(place: Place) -> list[fates.LetterRef]:
    return [one for some in fates.batches(deadletters.find(place.bus, TOPIC, GROUP)) for one in some]


def buried(place: Place, box: Inbox) -> Message:
    """A dead letter below the floor."""
    dead, other = place.deliver(2)
    place.bury(dead)
    box.handle(other, effect)
    place.settle(other)
    place.upkeep()
    assert floors() == place.pair(other)
    assert rows() == []
    return dead


def test_a_dead_letter_that_is_retried_is_handled_although_it_lies_below_the_floor(
    place: Place, box: Inbox
) -> None:
    dead = buried(place, box)
    fates.retry(place.bus, TOPIC, GROUP, letters(place))
    place.upkeep()
    box.handle(dead, effect)
    box.handle(dead, effect)
    assert effects(dead.id) == 1
    place.settle(dead)
    assert place.upkeep() == 1
    assert open_ones() == []


def test_a_dead_letter_that_dies_again_can_be_retried_again(place: Place, box: Inbox) -> None:
    dead = buried(place, box)
    for _ in range(2):
        fates.retry(place.bus, TOPIC, GROUP, letters(place))
        place.bury(dead)
        place.upkeep()
    fates.retry(place.bus, TOPIC, GROUP, letters(place))
    place.upkeep()
    box.handle(dead, effect)
    assert effects(dead.id) == 1


def test_the_row_of_a_dead_letter_whose_effect_is_there_is_kept_for_as_long_as_the_letter(
    place: Place, box: Inbox
) -> None:
    # Its handler killed the process after the commit, at the last attempt.
    dead, other = place.deliver(2)
    box.handle(dead, effect)
    place.bury(dead)
    place.settle(other)
    place.upkeep()
    assert rows() == place.pair(dead)
    fates.retry(place.bus, TOPIC, GROUP, letters(place))
    box.handle(dead, effect)
    assert effects(dead.id) == 1


def test_a_discarded_dead_letter_is_settled_for_good(place: Place, box: Inbox) -> None:
    dead = buried(place, box)
    fates.discard(place.bus, TOPIC, GROUP, letters(place))
    place.upkeep()
    assert open_ones() == []
    box.handle(dead, effect)
    assert effects(dead.id) == 0


def test_dead_letters_that_were_deleted_all_at_once_are_settled_for_good(place: Place, box: Inbox) -> None:
    buried(place, box)
    place.bus.client.call("DEL", place.keys.dead(GROUP))
    place.upkeep()
    assert open_ones() == []


def test_a_message_that_dies_between_the_looks_keeps_the_floor_where_it_is(
    place: Place, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies, other = place.deliver(2)
    box.handle(other, effect)
    place.settle(other)
    look = forgetting._Forgetting._letters

    def die_after(*args: Any) -> Any:
        found = look(*args)
        place.bury(dies)
        return found

    monkeypatch.setattr(forgetting._Forgetting, "_letters", die_after)
    assert place.upkeep() == 0
    assert floors() == [(0, 0)]
    monkeypatch.undo()
    assert place.upkeep() == 1
    assert open_ones() == place.pair(dies)


# ---------------------------------------------------------------------- a server with other data


def go_back(place: Place, to: str) -> None:
    """The server comes back with older data: the group was given less."""
    place.bus.client.call("XGROUP", "SETID", place.keys.stream, GROUP, to)


def test_a_server_that_has_lost_data_raises_no_floor_and_closes_nothing(place: Place, box: Inbox) -> None:
    first, waiting, settled = place.deliver(3)
    for message in (first, settled):
        box.handle(message, effect)
        place.settle(message)
    place.upkeep()
    place.settle(waiting)  # as if the server had never given it out
    go_back(place, first.id)

    forget(place)
    assert floors() == place.pair(settled)
    assert open_ones() == place.pair(waiting)

    # What it gives out again was settled, or waits still
    for message in (waiting, settled):
        box.handle(message, effect)
        assert effects(message.id) == 1


def test_another_era_has_a_floor_of_its_own(place: Place, box: Inbox) -> None:
    (message,) = place.deliver()
    box.handle(message, effect)
    place.settle(message)
    place.upkeep()
    place.bus.client.call("HSET", place.keys.state(GROUP), "era", f"{place.bus.settings.prefix}:new")
    box.handle(place.message(message.id), effect)
    assert effects(message.id) == 2


def test_two_who_raise_a_floor_at_once_do_not_undo_each_other(
    place: Place, box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = place.deliver(2)
    box.handle(first, effect)
    place.settle(first)
    place.mark(first.id)
    write, nested = forgetting._Forgetting._write, []

    def late(self: Any, *args: Any) -> bool:
        if not nested:
            # Another leader does all of its work between the look of this one and its writing.
            nested.append(1)
            box.handle(second, effect)
            place.settle(second)
            assert place.upkeep() == 2
        return write(self, *args)

    monkeypatch.setattr(forgetting._Forgetting, "_write", late)
    assert forget(place) == 0
    assert floors() == place.pair(second)


# ---------------------------------------------------------------------- eras that are over


def test_rows_of_an_era_that_is_over_go_when_their_messages_are_a_day_old(place: Place, box: Inbox) -> None:
    now, prefix = int(time.time() * 1000), place.bus.settings.prefix
    old = now - forgetting.OLD_ERA_MS - 1000
    for ms in (old, now):
        for era in (f"{prefix}:over", "another-bus:over"):
            box.handle(place.message(f"{ms}-0", era=era), effect)
        Inbox("deleted-group", "default").handle(place.message(f"{ms}-0", era=f"{prefix}:over"), effect)
    box.handle(place.message(f"{old}-1"), effect)

    assert forget(place) == 2

    left = set(InboxRow.objects.values_list("group", "era", "ms", "seq"))
    assert left == {
        (GROUP, f"{prefix}:over", now, 0),
        ("deleted-group", f"{prefix}:over", now, 0),
        (GROUP, "another-bus:over", old, 0),
        (GROUP, "another-bus:over", now, 0),
        (GROUP, place.era, old, 1),
    }
    eras = InboxFloor.objects.values_list("group", "era")
    assert set(eras) == {(GROUP, "another-bus:over"), (GROUP, place.era)}


def test_a_floor_that_is_not_a_day_old_stays_when_its_era_is_over(place: Place, box: Inbox) -> None:
    now = int(time.time() * 1000)
    old, era = now - forgetting.OLD_ERA_MS - 1000, f"{place.bus.settings.prefix}:over"
    box.handle(place.message(f"{old}-0", era=era), effect)
    floor = InboxFloor.objects.get(era=era)
    InboxFloor.objects.update(ms=now)
    floor.inboxopen_set.create(ms=old, seq=0)
    floor.inboxopen_set.create(ms=old, seq=1)
    assert forget(place) == 1
    assert floors() == [(now, 0)]
    assert open_ones() == [(old, 1)]
    box.handle(place.message(f"{old}-0", era=era), effect)
    assert effects(f"{old}-0") == 1


@pytest.mark.parametrize(("prove", "handled"), [(lambda: False, False), (lambda: True, True), (None, True)])
def test_where_a_floor_is_gone_only_the_owner_makes_it_anew(
    place: Place, box: Inbox, prove: Callable[[], bool] | None, handled: bool
) -> None:
    first, second = place.deliver(2)
    box.handle(first, effect)
    InboxFloor.objects.all().delete()
    second._source = second._source._replace(prove=prove)
    if handled:
        box.handle(second, effect)
    else:
        with pytest.raises(StaleLease):
            box.handle(second, effect)
    assert effects(second.id) == handled
    assert InboxRow.objects.count() == 1 + handled


def test_a_mark_of_a_deleted_group_of_the_same_name_deletes_nothing(place: Place, box: Inbox) -> None:
    (message,) = place.deliver()
    box.handle(message, effect)
    place.settle(message)
    MarkCopy.objects.create(
        prefix=place.bus.settings.prefix, topic=TOPIC, partition=0, group=GROUP, born="before",
        position=message.id,
    )  # fmt: skip
    assert forget(place) == 0


def test_before_the_handler_there_are_the_insertion_and_one_query(place: Place, box: Inbox) -> None:
    first, second, *batch = place.deliver(12)
    box.handle(first, effect)
    with CaptureQueriesContext(connection) as single:
        box.handle(second, lambda _: None)
    with CaptureQueriesContext(connection) as several:
        box.handle_batch(batch, lambda _: ())
    together = connection.vendor == "postgresql"  # in one round trip
    assert _verbs(single) == (["INSERT"] if together else ["INSERT", "SELECT"])
    assert _verbs(several) == ["INSERT", "SELECT"]


def _verbs(queries: Any) -> list[str]:
    words = [query["sql"].split()[0] for query in queries]
    return [word for word in words if word not in ("BEGIN", "COMMIT")]


def test_floors_of_one_group_are_opened_once(place: Place, django_assert_num_queries: Any) -> None:
    known = Floors(GROUP, "default")
    where = (TOPIC, 0, "e")
    assert known.open(where)
    assert not Floors(GROUP, "default").open(where)
    assert known.key(where) == InboxFloor.objects.get().pk
