"""The outbox: messages that are published with the database transaction, or not at all.

`write` puts a row into the database of the transaction that is open. After the commit a relay, in upkeep or
by `bus outbox relay`, sends it to Redis and deletes it:

- It locks one partition at a time (its shard row, FOR UPDATE SKIP LOCKED), so several relays share the work.
  SQLite has no such locks: there one relay works at a time, the one that holds the lock of a file.
- It reads the rows of the partition from the lowest id, a page at a time, sends them, and deletes exactly
  those that Redis has confirmed. It keeps no cursor: a transaction with lower ids may commit later.
- Each row has a message_id, under which Redis stores it once. Redis knows the id for KEEP_SECONDS until the
  row is deleted, and for the dedupe window from then on, so a relay that dies between the confirmation and
  the deletion doubles nothing. Rows that were read too long ago (the process was frozen) are not sent, but
  read again.

Exactness and order need no lock. Whoever sends, sends the lowest rows first and under their ids; so a row is
stored first by somebody who sends all before it too, and what is sent a second time is known.
"""

from __future__ import annotations

import fcntl
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, router, transaction
from django.db.models.functions import Length

from bus.databases import aware, distinct
from bus.errors import BusError, BusFull, BusUnavailable, InvalidMessage, NotInTransaction, PublishUncertain
from bus.format.netstrings import pack, unpack
from bus.publishing.publisher import MAX_ONCE
from bus.safety.complaints import Complaints

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.publishing.options import PublishOptions
    from bus.values import TopicSpec

logger = logging.getLogger("bus.outbox")
complaints = Complaints(logger)

#: Bytes of messages in one write, beyond the first message.
PAGE_BYTES = 1024 * 1024
#: Pages of one partition before the next has its turn.
PAGES = 4
#: How long Redis knows the id of a row that was sent and is not deleted. Seconds: a relay that died should
#: have a successor within a day.
KEEP_SECONDS = 86_400
#: Rows counted for a page of the admin.
COUNTED = 10_000


def write(bus: Bus, topic: str, value: Any, options: PublishOptions, using: str | None = None) -> None:
    """Write a message into the outbox of the database `using`, in the transaction that is open there.

    Raises InvalidMessage, NotInTransaction, UnknownTopic, the database's errors; and BusUnavailable for a
    topic that neither code nor this database knows, so that Redis must be asked.
    """
    from bus.models import OutboxRow

    alias = using or router.db_for_write(OutboxRow)
    if not connections[alias].in_atomic_block:
        raise NotInTransaction(
            f"publish_in_transaction({topic!r}) was called without a transaction in database {alias!r}. Use "
            "it inside of transaction.atomic(), with the changes that the message tells of; else publish()."
        )
    message_id = uuid.uuid4().hex if options.message_id is None else options.message_id
    draft = bus.publisher.draft(topic, value, options._replace(message_id=message_id))
    if "\0" in message_id:
        raise InvalidMessage(f"Message for {topic!r}: a message_id in a database cannot hold a zero byte.")
    OutboxRow.objects.using(alias).create(
        prefix=bus.settings.prefix,
        topic=topic,
        partition=draft.partition(_spec(bus, topic, alias).partitions, lambda: 0),
        message_id=message_id,
        fields=pack(draft.fields),
    )


def _spec(bus: Bus, topic: str, alias: str) -> TopicSpec:
    from bus.models import Topic

    if declared := bus.declared.get(topic):
        return declared
    row = Topic.objects.using(alias).filter(name=topic).first()
    return row.spec if row is not None else bus.registry.spec(topic)


# ---------------------------------------------------------------------- relay


def boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Relay:
    """Sends the rows of one database to Redis. Not thread-safe; several relays do no harm."""

    def __init__(self, bus: Bus, alias: str, *, clock: Callable[[], float] = boot_time) -> None:
        self._bus = bus
        self._alias = alias
        self._clock = clock
        self._last: tuple[str, int] = ("", -1)
        self._shards: set[tuple[str, int]] = set()
        """Partitions whose shard row is there."""
        self._complaints = Complaints(logger)
        self.failed: set[tuple[str, int]] = set()
        """Partitions (topic, number) whose rows could not be sent in the last run."""

    def run(self, seconds: float = 10.0) -> int:
        """Send what is there, at most PAGES pages of each partition and for about `seconds`; how many rows.

        One indexed query if there is nothing. Raises BusUnavailable, BusFull, PublishUncertain (the rows
        stay, and are to be sent again), and the database's errors. What is wrong with one partition alone is
        logged, and keeps no other from being sent.
        """
        ends, sent = time.monotonic() + seconds, 0
        self.failed = set()
        with self._alone() as mine:
            for place in self._places() if mine else []:
                self._last = place
                try:
                    sent += self._visit(place)
                except (BusUnavailable, BusFull, PublishUncertain):
                    raise
                except BusError as error:
                    self._complain(place, error)
                if time.monotonic() > ends:
                    break
        return sent

    def _places(self) -> list[tuple[str, int]]:
        """Partitions that have rows, those after the last one first: each gets its turn."""
        found = [(topic, partition) for topic, partition in distinct(self._rows(), "topic", "partition")]
        return [each for each in found if each > self._last] + [each for each in found if each <= self._last]

    def _visit(self, place: tuple[str, int]) -> int:
        sent = 0
        for _ in range(PAGES):
            page = self._locked_page(place) if self._locks else self._send_page(place)
            self._shorten(place, page)
            sent += len(page)
            if not page:
                break
        return sent

    def _shorten(self, place: tuple[str, int], message_ids: list[str]) -> None:
        """The rows are gone for good: their ids need not be known for so long any more."""
        try:
            self._bus.publisher.shorten(*place, message_ids)
        except BusUnavailable as error:
            complaints.trouble(error, "Ids of sent rows stay known for %s s: %s", KEEP_SECONDS, error)

    @property
    def _locks(self) -> bool:
        return bool(connections[self._alias].features.has_select_for_update_skip_locked)

    def _locked_page(self, place: tuple[str, int]) -> list[str]:
        from bus.models import OutboxShard

        topic, partition = place
        shards = OutboxShard._default_manager.using(self._alias)
        if place not in self._shards:
            # Not in the transaction of who publishes: it would make all who publish wait for each other.
            fresh = OutboxShard(prefix=self._bus.settings.prefix, topic=topic, partition=partition)
            shards.bulk_create([fresh], ignore_conflicts=True)
            self._shards.add(place)
        with transaction.atomic(using=self._alias):
            shard = shards.select_for_update(skip_locked=True).filter(
                prefix=self._bus.settings.prefix, topic=topic, partition=partition
            )
            if shard.first() is None:
                self._shards.discard(place)  # another relay is at it, or somebody has deleted the row
                return []
            return self._send_page(place)

    def _send_page(self, place: tuple[str, int]) -> list[str]:
        """Send the lowest rows and delete them; their message_ids."""
        topic, partition = place
        read = self._clock()
        page = self._read(topic, partition)
        messages = [(message_id, unpack(bytes(fields))) for _, message_id, fields in page]
        if not page or self._clock() - read > self._bus.settings.dedupe_window / 4:
            return []  # a relay that was frozen for longer might send what nobody knows any more
        self._bus.publisher.send_once(topic, partition, messages, window=KEEP_SECONDS)
        self._rows().filter(pk__in=[pk for pk, *_ in page]).delete()
        return [message_id for _, message_id, _ in page]

    def _read(self, topic: str, partition: int) -> list[tuple[int, str, Any]]:
        """The lowest rows, as many as one write takes."""
        rows = self._rows().filter(topic=topic, partition=partition).order_by("id")
        chosen: list[int] = []
        total = 0
        for pk, size in rows.annotate(size=Length("fields")).values_list("pk", "size")[:MAX_ONCE]:
            total += size
            if chosen and total > PAGE_BYTES:
                break
            chosen.append(pk)
        return list(rows.filter(pk__in=chosen).values_list("pk", "message_id", "fields"))

    def _rows(self) -> Any:
        return _rows(self._bus, self._alias)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """On SQLite: whether no other relay of this machine is at work. It only saves work."""
        connection = connections[self._alias]
        name = str(connection.settings_dict["NAME"])
        if connection.vendor != "sqlite" or name.startswith((":", "file:")):
            yield True
            return
        with ExitStack() as stack:
            mine = True
            try:
                file = stack.enter_context(open(f"{name}-outbox", "a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
            except OSError as error:
                logger.debug("The outbox is relayed without its lock: %s", error)
            yield mine

    def _complain(self, place: tuple[str, int], error: BusError) -> None:
        self.failed.add(place)
        self._complaints.say(
            (place, type(error)),
            "The outbox rows of %s/%s cannot be sent and stay: %s",
            *place,
            error,
            level=logging.ERROR,
        )


# ---------------------------------------------------------------------- lag


@dataclass(frozen=True, slots=True)
class Backlog:
    """Rows that were not sent yet."""

    rows: int
    oldest: datetime | None
    """When the lowest of them was written, by the clock of who wrote it."""
    more: bool = False
    """True: there are more rows than were counted."""


@dataclass(frozen=True, slots=True)
class ShardBacklog:
    """Rows of one partition that were not sent yet."""

    database: str
    topic: str
    partition: int
    rows: int
    oldest: datetime | None


def backlog(bus: Bus, alias: str) -> Backlog:
    """All of a database, counted up to COUNTED."""
    rows = _rows(bus, alias)
    counted = rows.values("pk")[: COUNTED + 1].count()
    oldest = rows.order_by("id").values_list("created", flat=True).first() if counted else None
    return Backlog(min(counted, COUNTED), aware(oldest), counted > COUNTED)


def backlogs(bus: Bus, alias: str) -> Iterator[ShardBacklog]:
    """Partition by partition, each counted in full."""
    rows = _rows(bus, alias)
    for topic, partition in distinct(rows, "topic", "partition"):
        mine = rows.filter(topic=topic, partition=partition)
        oldest = mine.order_by("id").values_list("created", flat=True).first()
        yield ShardBacklog(alias, topic, partition, mine.count(), aware(oldest))


def _rows(bus: Bus, alias: str) -> Any:
    from bus.models import OutboxRow

    return OutboxRow._default_manager.using(alias).filter(prefix=bus.settings.prefix)
