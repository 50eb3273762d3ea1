"""Groups that are new: told before their first message, or refused, if they begin with many messages.

A handler whose group gets another name is another group, and begins at the beginning: all that is kept would
be handled once more. So a worker says what will happen; where BUS["NEW_GROUP_LIMIT"] is exceeded the group is
not made, and its worker goes on with its others. `bus group create` makes any group.
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
from bus.sums import Lag, total
from bus.topics.registry import GroupSpec, start_id

logger = logging.getLogger("bus.groups")

#: A refusal is repeated by the workers that are refused; one that is older is over.
FRESH = timedelta(minutes=3)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A group that was not made."""

    topic: str
    group: str
    messages: int
    """The least number of messages with which it would have begun."""


class Newcomers:
    """Declares the groups of one worker. Not thread-safe. Raises BusUnavailable."""

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._complaints = Complaints(logger, clock=clock)
        self._again_at = 0.0
        self.refused: frozenset[tuple[str, str]] = frozenset()
        """(topic, group) of the groups that were refused when they were last declared."""

    def must_declare(self, wanted: Iterable[tuple[str, str]], known: Collection[tuple[str, str]]) -> bool:
        """Whether a group is missing that was not refused, or it is time to look at the refused ones again.

        `wanted`, `known`: (topic, group) of what this worker serves, and of all that Redis has.
        """
        if any(place not in known and place not in self.refused for place in wanted):
            return True
        made = any(place in known for place in self.refused)
        return made or bool(self.refused and self._clock() >= self._again_at)

    def declare(self, specs: Iterable[GroupSpec], *, keep_ordering: bool = False) -> bool:
        """Declare groups, but for new ones beyond the limit; whoever makes a group tells of it first.

        False where something foreign was in the way of some, which is told of; all others are declared.
        `keep_ordering`: as of Registry.declare_groups.
        """
        wanted = list(specs)
        known = self._bus.registry.group_names()
        ahead = {
            (spec.topic, spec.name): backlog(self._bus, spec)
            for spec in wanted
            if (spec.topic, spec.name) not in known
        }
        limit = self._bus.settings.new_group_limit
        refused = {place for place, lag in ahead.items() if limit is not None and lag.count > limit}
        for topic, group in sorted(refused):
            self._refuse(topic, group, ahead[topic, group])
        self._admit([place for place in self.refused if place not in refused])
        self.refused, self._again_at = frozenset(refused), self._clock() + COMPLAIN_SECONDS
        try:
            self._bus.registry.declare_groups(
                (spec for spec in wanted if (spec.topic, spec.name) not in refused),
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
            group, topic, _words(lag), f"{self._bus.settings.new_group_limit:,}", topic, group,
            level=logging.ERROR,
        )  # fmt: skip
        (clock,) = self._bus.client.pipe([("TIME",)])
        record = {"messages": lag.count, "at": int(seconds_of(clock) * 1000)}
        # By the script, which also writes while memory is full.
        keys, args = [self._bus.keys.refused], [f"{topic}/{group}", orjson.dumps(record), ""]
        self._noted(commands.run_many(self._bus.client, "declare", [(keys, args)])[0])

    def _admit(self, places: list[tuple[str, str]]) -> None:
        for topic, group in places:
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
    """Yield the groups that were refused to workers within FRESH, and that nobody has made since.

    `made`: (topic, group) of all that have a record, where the caller has looked already.
    """
    table, clock = bus.client.pipe([("HGETALL", bus.keys.refused), ("TIME",)])
    if stands_at(bus.keys.refused, table):
        return
    now = datetime.fromtimestamp(seconds_of(clock), UTC)
    if made is None:
        made = bus.registry.group_names()  # by hand: the worker that was refused may be gone by then
    for place, raw in sorted(fields_of(check(table)).items()):
        topic, _, group = place.partition("/")
        try:
            known = orjson.loads(raw)
            at, messages = datetime.fromtimestamp(known["at"] / 1000, UTC), int(known["messages"])
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
        spec.name, spec.topic, begins, _words(lag), spec.topic, spec.name,
    )  # fmt: skip


def _words(lag: Lag) -> str:
    return f"{lag.count:,}" if lag.exact else f"at least {lag.count:,}"
