"""Warns of new groups that begin with kept messages, or refuses them, before their first message.

A handler whose group gets another name is another group, and begins at the beginning: all messages that are
kept would be handled once more. So a worker says what will happen. Where BUS["NEW_GROUP_LIMIT"] is exceeded
the group is not made, and its worker goes on with its other groups. `bus group create` makes any group.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson

from bus.client import Bus
from bus.errors import BusError, ForeignData, is_away
from bus.format.strangers import stands_at
from bus.observe import lag as lags
from bus.safety.complaints import COMPLAIN_SECONDS, Complaints
from bus.streams import commands
from bus.streams.commands import fields_of
from bus.streams.connect import check, seconds_of
from bus.streams.wire import Argument
from bus.sums import Lag, total
from bus.topics.registry import GroupSpec, start_id

logger = logging.getLogger("bus.groups")

#: How old a refusal may be: workers repeat it while they are refused, so an older one is over.
FRESH = timedelta(minutes=3)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A new group that was not made."""

    topic: str
    group: str
    messages: int
    """It would have begun with so many messages, at least."""


class Newcomers:
    """Declares the groups of one worker, and refuses new ones beyond the limit.

    Not thread-safe. Raises BusUnavailable.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._complaints = Complaints(logger, clock=clock)
        self._again_at = 0.0
        self.refused: frozenset[tuple[str, str]] = frozenset()
        """(topic, group) of the groups that were refused when they were last declared."""

    def must_declare(self, served: Iterable[tuple[str, str]], declared: Collection[tuple[str, str]]) -> bool:
        """Return whether a group is missing that was not refused, or refused ones are to be looked at again.

        `served`, `declared`: (topic, group) of what this worker serves, and of all that Redis has.
        """
        if any(group not in declared and group not in self.refused for group in served):
            return True
        made = any(group in declared for group in self.refused)
        return made or bool(self.refused and self._clock() >= self._again_at)

    def declare(self, specs: Iterable[GroupSpec], *, keep_ordering: bool = False) -> bool:
        """Declare groups, except new ones beyond the limit. The worker that makes a group warns of it first.

        Return False if something foreign was in the way of some, which the log tells; all others are
        declared. `keep_ordering`: as in Registry.declare_groups.
        """
        specs = list(specs)
        declared = self._bus.registry.group_names()
        ahead = {
            (spec.topic, spec.name): backlog(self._bus, spec)
            for spec in specs
            if (spec.topic, spec.name) not in declared
        }
        limit = self._bus.settings.new_group_limit
        refused = {group for group, lag in ahead.items() if limit is not None and lag.count > limit}
        for topic, name in sorted(refused):
            self._refuse(topic, name, ahead[topic, name])
        self._admit([group for group in self.refused if group not in refused])
        self.refused, self._again_at = frozenset(refused), self._clock() + COMPLAIN_SECONDS
        try:
            self._bus.registry.declare_groups(
                (spec for spec in specs if (spec.topic, spec.name) not in refused),
                on_new=lambda spec: _announce(spec, ahead.get((spec.topic, spec.name))),
                keep_ordering=keep_ordering,
            )
        except ForeignData as error:  # the others are declared; slices find what is in the way of one
            self._complaints.say("declare", "%s", error)
            return False
        return True

    def _refuse(self, topic: str, group: str, lag: Lag) -> None:
        self._complaints.say(
            (topic, group),
            "Group %s on %s is new and is not made: it would begin with %s messages, more than "
            "BUS['NEW_GROUP_LIMIT'] (%s). `bus group create %s %s --start earliest` (or latest) makes it.",
            group, topic, lag.words, f"{self._bus.settings.new_group_limit:,}", topic, group,
            level=logging.ERROR,
        )  # fmt: skip
        (clock,) = self._bus.client.pipe([("TIME",)])
        record = {"messages": lag.count, "at": int(seconds_of(clock) * 1000)}
        # By the script, which also writes while memory is full.
        args: list[Argument] = [f"{topic}/{group}", orjson.dumps(record), ""]
        self._noted(commands.run_many(self._bus.client, "declare", [([self._bus.keys.refused], args)])[0])

    def _admit(self, groups: list[tuple[str, str]]) -> None:
        """Forget that these (topic, group) were refused."""
        for topic, group in groups:
            self._complaints.over((topic, group))
            self._noted(self._bus.client.pipe([("HDEL", self._bus.keys.refused, f"{topic}/{group}")])[0])

    def _noted(self, reply: object) -> None:
        """Take the reply to a note of refusals. The note is for doctor alone: whatever stands in its way must
        not stop the groups that are not refused.
        """
        if stands_at(self._bus.keys.refused, reply):
            return
        try:
            check(reply)
        except BusError as error:
            if is_away(error):
                raise
            self._complaints.say("note", "Refused groups cannot be noted for `bus doctor`: %s", error)
        else:
            self._complaints.over("note")


def backlog(bus: Bus, spec: GroupSpec) -> Lag:
    """Return how many messages a group would begin with; "at least" if counting was cut short."""
    start = start_id(spec.start)
    partitions = range(bus.registry.spec(spec.topic).partitions)
    streams = [bus.keys.partition(spec.topic, number).stream for number in partitions]
    if start == "latest":
        return Lag(0)
    if start == "earliest":
        replies = zip(streams, bus.client.pipe([("XLEN", stream) for stream in streams]), strict=True)
        return Lag(sum(0 if stands_at(stream, reply) else check(reply) for stream, reply in replies))
    counts = [lags.LagCount(stream, start, "+") for stream in streams]
    lags.count(bus.client, counts)
    return total(count.lag() for count in counts) or Lag(0)


def refusals(bus: Bus, made: Collection[tuple[str, str]] | None = None) -> Iterator[Refusal]:
    """Yield the groups that workers were refused within FRESH, and that nobody has made since.

    `made`: (topic, group) of all that have a record, if the caller has looked already.
    """
    table, clock = bus.client.pipe([("HGETALL", bus.keys.refused), ("TIME",)])
    if stands_at(bus.keys.refused, table):
        return
    now = datetime.fromtimestamp(seconds_of(clock), UTC)
    if made is None:
        made = bus.registry.group_names()  # by hand: the worker that was refused may be gone by then
    for field, raw in sorted(fields_of(check(table)).items()):
        topic, _, group = field.partition("/")
        try:
            record = orjson.loads(raw)
            at, messages = datetime.fromtimestamp(record["at"] / 1000, UTC), int(record["messages"])
        except (ValueError, TypeError, KeyError, OverflowError, OSError):
            continue  # what is not ours there says nothing of a group
        if now - at < FRESH and (topic, group) not in made:
            yield Refusal(topic, group, messages)


def _announce(spec: GroupSpec, lag: Lag | None) -> None:
    if lag is None or not lag.count:
        return
    begins = "at the beginning" if spec.start == "earliest" else f"after {spec.start}"
    logger.warning(
        "Group %s on %s is new: it begins %s, %s messages. `start=` of its handler, or `bus group create "
        "%s %s --start latest` before its first worker, changes that.",
        spec.name, spec.topic, begins, lag.words, spec.topic, spec.name,
    )  # fmt: skip
