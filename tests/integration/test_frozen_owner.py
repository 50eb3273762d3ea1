"""An owner that is frozen anywhere in its transaction, while a peer does its work, repeats no effect."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

from bus.client import Bus
from bus.errors import Reject
from bus.models import InboxFloor, Topic
from bus.operating import deadletters, fates
from bus.transactions.inbox import Inbox
from bus.values import Message, id_pair
from tests.databases import Copies, default_database
from tests.gates import Frozen
from tests.integration.places import GROUP, TOPIC, Place, effect, effects, rows, sqlite_locks_at_begin
from tests.waiting import wait_until

Handle = Callable[[Message], None]
Deliver = Callable[[Place], Message]


def singly(message: Message) -> None:
    Inbox(GROUP, "default").handle(message, effect)


def in_a_batch(message: Message) -> None:
    def handler(fresh: list[Message]) -> Collection[str]:
        for each in fresh:
            effect(each)
        return ()

    Inbox(GROUP, "default").handle_batch([message], handler)


def under_a_snapshot(message: Message) -> None:
    """The snapshot of the transaction is older than the insertion of the row, and than the floor."""
    with transaction.atomic():
        Topic.objects.exists()
        singly(message)


def new(place: Place) -> Message:
    return place.deliver()[0]


def retrying(place: Place) -> Message:
    """One that lies below the floor, since it failed, and others went on."""
    message, other = place.deliver(2)
    place.settle(other)
    place.upkeep()
    return message


def redriven(place: Place) -> Message:
    """One that lies below the floor, since it was a dead letter, and an operator gave it back."""
    message, other = place.deliver(2)
    place.bury(message)
    place.settle(other)
    place.upkeep()
    (letter,) = deadletters.find(place.bus, TOPIC, GROUP)
    (fate,) = fates.retry(place.bus, TOPIC, GROUP, next(fates.batches([letter])))
    assert fate is fates.Fate.WAITING
    return message


def freeze_at_every_moment(
    place: Place, stale: Handle, peer: Handle = singly, *, deliver: Deliver = new, may_fail: bool = False
) -> set[str]:
    """For each moment of `stale`: freeze there, let the peer do all of it, thaw. Returns the moments.

    `may_fail`: the frozen one may find that it must begin again, which has no effect.
    """
    seen: set[str] = set()
    for gate in range(100):
        message = deliver(place)
        frozen = Frozen(lambda message=message: stale(message), gate)  # type: ignore[misc]
        frozen.start()
        if not frozen.wait_frozen():
            frozen.end()
            assert effects(message.id) == 1
            return seen
        seen.add(frozen.moments[-1])
        other = Frozen(lambda message=message: peer(message))  # type: ignore[misc]
        other.start()
        if frozen.holds:
            # The peer waits for the row, or for SQLite's lock, until the frozen one goes on.
            other.wait_blocked("before BEGIN" if sqlite_locks_at_begin() else "before INSERT")
            frozen.end()
            other.end()
        else:
            other.end()
            place.settle(message)
            place.upkeep()
            assert rows() == [], "the row is forgotten while somebody is frozen"
            frozen.end()
        assert other.error is None
        if frozen.error is not None:
            assert may_fail, repr(frozen.error)
            assert isinstance(frozen.error, OperationalError), repr(frozen.error)
        assert effects(message.id) == 1, f"frozen {frozen.moments[gate]}: {frozen.moments}"
        place.settle(message)
        place.upkeep()
    raise AssertionError("it comes to no end")


@pytest.fixture
def place(server: Any, database: str) -> Iterator[Place]:
    bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
    yield Place(bus)
    bus.close()


@pytest.mark.parametrize("deliver", [new, retrying, redriven])
@pytest.mark.parametrize("handle", [singly, in_a_batch])
def test_an_owner_frozen_at_any_moment_of_its_transaction_repeats_no_effect(
    place: Place, handle: Handle, deliver: Deliver
) -> None:
    seen = freeze_at_every_moment(place, handle, handle, deliver=deliver)
    expected = {"BEGIN", "INSERT", "COMMIT"}
    if connection.vendor != "postgresql" or handle is in_a_batch:
        expected.add("SELECT")  # else it goes with the insertion
    assert {f"{when} {what}" for when in ("before", "after") for what in expected} <= seen


def test_an_owner_that_waits_for_the_lock_of_its_row_repeats_no_effect(place: Place) -> None:
    # Given an owner whose insertion waits for a peer that is at the message
    (message,) = place.deliver()
    peer = Frozen(lambda: singly(message), gate=5)
    peer.start()
    assert peer.wait_frozen()
    assert peer.holds
    waiting = Frozen(lambda: singly(message))
    waiting.start()
    waiting.wait_blocked("before BEGIN" if sqlite_locks_at_begin() else "before INSERT")

    # When the peer is done, and all of it is forgotten as soon as it can be
    peer.end()
    place.settle(message)
    place.upkeep()
    waiting.end()

    assert (peer.error, waiting.error) == (None, None)
    assert effects(message.id) == 1


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_the_floor_is_read_as_it_is_when_the_insertion_has_ended(place: Place) -> None:
    # Given an owner whose statement has begun, and waits for a peer's row
    (message,) = place.deliver()

    at_it, go_on = threading.Event(), threading.Event()

    def fail(each: Message) -> None:
        at_it.set()
        assert go_on.wait(30)
        raise Reject("no")

    peer = Frozen(lambda: Inbox(GROUP, "default").handle(message, fail))
    peer.start()
    assert at_it.wait(30)
    owner = Frozen(lambda: singly(message))
    owner.start()
    # MariaDB looks anew only if it was not asked for 0.1 s.
    wait_until(_somebody_waits, 20, "the owner to wait for the row", 0.2)

    # When the floor is raised before the peer's row is gone
    InboxFloor.objects.update(ms=id_pair(message.id)[0] + 1)
    go_on.set()
    peer.end()
    owner.end()

    # Then the owner sees the floor
    assert isinstance(peer.error, Reject)
    assert owner.error is None
    assert effects(message.id) == 0


def _somebody_waits() -> bool:
    waiting = {
        "postgresql": "SELECT COUNT(*) FROM pg_locks WHERE NOT granted",
        "mysql": "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    }
    with connection.cursor() as cursor:
        cursor.execute(waiting[connection.vendor])
        return bool(cursor.fetchone()[0])


LEVELS = [
    ("sqlite", None),
    ("postgresql", "repeatable read"),
    ("postgresql", "serializable"),
    ("mariadb", "repeatable read"),
    ("mariadb", "serializable"),
]


def _named(each: tuple[str, str | None]) -> str:
    return f"{each[0]} {each[1] or 'deferred'}"


@pytest.fixture(params=LEVELS, ids=_named)
def isolated(
    request: pytest.FixtureRequest, copies: Copies, tmp_path: Path, server: Any, django_db_blocker: Any
) -> Iterator[Place]:
    """Transactions that do not see each commit at once; of SQLite, transactions that begin without a lock."""
    kind, level = request.param
    with django_db_blocker.unblock():
        entry = _at_level(copies.make(kind, tmp_path), level)
        with default_database(entry):
            bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
            yield Place(bus)
            bus.close()


def _at_level(entry: dict[str, Any], level: str | None) -> dict[str, Any]:
    options = dict(entry["OPTIONS"])
    if level is None:
        del options["transaction_mode"]
    elif entry["ENGINE"].endswith("mysql"):
        options["isolation_level"] = level
    else:
        from psycopg import IsolationLevel

        options["isolation_level"] = IsolationLevel[level.upper().replace(" ", "_")]
    return {**entry, "OPTIONS": options}


@pytest.mark.parametrize("handle", [singly, in_a_batch])
def test_an_owner_repeats_no_effect_whatever_the_isolation_level(isolated: Place, handle: Handle) -> None:
    assert "before INSERT" in freeze_at_every_moment(isolated, handle, handle)


# At MariaDB's highest level what the transaction has read is locked, so no peer could come in between.
@pytest.mark.parametrize("isolated", LEVELS[:-1], indirect=True, ids=_named)
@pytest.mark.parametrize("deliver", [new, redriven])
def test_a_snapshot_that_is_older_than_the_floor_repeats_no_effect(isolated: Place, deliver: Deliver) -> None:
    freeze_at_every_moment(isolated, under_a_snapshot, deliver=deliver, may_fail=True)
