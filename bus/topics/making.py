"""Streams of partitions and their groups: made, and made again where they were lost.

`ensure.lua` does it for one partition. What could take the server long is done here, in portions: counting
how far a group is, and giving back to a lost group what waits for a retry or is held back. Each portion
leaves a right state, and whoever comes next goes on: workers when they start, upkeep before it trims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from bus.errors import BusError, ForeignData, ServerError
from bus.streams import commands, counting
from bus.streams.connect import check

if TYPE_CHECKING:
    from bus.format.keys import PartitionKeys
    from bus.streams.connect import Client
    from bus.streams.wire import Argument
    from bus.topics.registry import GroupSpec

#: Messages that one script gives back: a few milliseconds of the server's time.
PAGE = 400
#: Partitions that are made in one round trip.
PARTITIONS = 1_024
#: How often a count may turn out to be of a stream that is not there any more.
_ATTEMPTS = 5


def make(
    client: Client, era: str, wanted: Mapping[PartitionKeys, Sequence[GroupSpec]]
) -> tuple[list[ForeignData], bool]:
    """Make sure that partitions exist, each with its groups; return what stands in the way in single ones,
    and whether groups that had been there were made again. All others are made then.

    `era`: a token never used before. Idempotent. Raises BusUnavailable, BusError.
    """
    troubles: list[ForeignData] = []
    rest = iter(wanted)
    restored = False
    while page := list(islice(rest, PARTITIONS)):
        restored |= _make_page(client, era, {keys: wanted[keys] for keys in page}, troubles)
    return troubles, restored


def _make_page(
    client: Client, era: str, wanted: Mapping[PartitionKeys, Sequence[GroupSpec]], troubles: list[ForeignData]
) -> bool:
    """The same for so many; return whether groups that had been there were made again."""
    restored = False
    left: dict[PartitionKeys, dict[str, str]] = {keys: {} for keys in wanted}
    for _ in range(_ATTEMPTS):
        replies = commands.run_many(
            client, "ensure", [_call(keys, era, wanted[keys], counted) for keys, counted in left.items()]
        )
        again = {}
        for keys, reply in zip(left, replies, strict=True):
            if commands.is_of_one_partition(reply):
                troubles.append(ForeignData(f"{keys.stream} cannot be made: {reply}. See `bus doctor`."))
                continue
            uncounted, giving, lost = check(reply)
            restored |= bool(lost)
            for group in giving:
                try:
                    give_back(client, keys, commands.text(group))
                except (ForeignData, ServerError) as error:
                    troubles.append(ForeignData(f"What waits in {keys.stream} cannot be given back: {error}"))
            if uncounted:
                again[keys] = dict(_counted(client, keys.stream, each) for each in uncounted)
        if not again:
            return restored
        left = again
    names = ", ".join(keys.stream for keys in left)
    raise BusError(f"Groups cannot be made on {names}: the streams are made anew all the time.")


def _call(
    keys: PartitionKeys, era: str, groups: Sequence[GroupSpec], counted: dict[str, str]
) -> tuple[list[str], list[Argument]]:
    names = [name for group in groups for name in keys.of_lost_group(group.name)]
    args: list[Argument] = [era]
    for group in groups:
        args += [group.name, group.start, counted.get(group.name, "")]
    return [keys.stream, *names], args


def _counted(client: Client, stream: str, asked: Sequence[Any]) -> tuple[str, str]:
    """Return the name of a group, and what ensure.lua wants to have counted for it."""
    group, id, basis, added = (commands.text(part) for part in asked)
    offset = int(added) - counting.count(client, stream, id, basis)
    return group, f"{id} {offset} {basis}"


def give_back(client: Client, keys: PartitionKeys, group: str) -> None:
    """Make all that waits in a group pending again, after the group was made again. Raises BusUnavailable."""
    own = [keys.stream, keys.retry(group), keys.held(group), keys.state(group)]
    at = b"0"
    while at:
        reply = commands.run_many(client, "giveback", [(own, [group, PAGE, at])])[0]
        if commands.is_nogroup(reply):
            return  # lost once more: then it begins anew when the group is made again
        at = check(reply)
