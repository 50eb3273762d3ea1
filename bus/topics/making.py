"""Makes the streams and groups of partitions, and makes them again where they are gone, in small scripts.

`ensure.lua` does it for one partition. What could take the server long is done here, in portions: counting
how far a group is, and giving back to a group that was gone what waits for a retry or is held back. Each
portion leaves a right state, and whoever comes next goes on: workers when they start, upkeep before it trims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from bus.errors import BusError, ForeignData, ServerError
from bus.streams import commands, counting
from bus.streams.connect import check
from bus.topics import resets

if TYPE_CHECKING:
    from bus.format.keys import PartitionKeys
    from bus.streams.connect import Client
    from bus.streams.wire import Argument
    from bus.topics.registry import GroupSpec

#: Messages that one script gives back: a few milliseconds of the server's time.
MESSAGES_A_SCRIPT = 400
#: Partitions that are made in one round trip.
PARTITIONS = 1_024
#: How often a count may turn out to be of a stream that is not there any more.
_ATTEMPTS = 5


def make(
    client: Client, era: str, groups_of: Mapping[PartitionKeys, Sequence[GroupSpec]]
) -> tuple[list[ForeignData], bool]:
    """Make partitions that are missing, each with its groups. Idempotent.

    Return an error for each partition that cannot be made, when all others are, and whether groups that had
    been there were made again. `era`: a token never used before. Raises BusUnavailable, BusError.
    """
    troubles: list[ForeignData] = []
    rest = iter(groups_of)
    restored = False
    while page := list(islice(rest, PARTITIONS)):
        restored |= _make_page(client, era, {keys: groups_of[keys] for keys in page}, troubles)
    return troubles, restored


def _make_page(
    client: Client,
    era: str,
    groups_of: Mapping[PartitionKeys, Sequence[GroupSpec]],
    troubles: list[ForeignData],
) -> bool:
    """Do what `make` does, for partitions of one round trip; add errors to `troubles`."""
    restored = False
    left: dict[PartitionKeys, dict[str, str]] = {keys: {} for keys in groups_of}
    for _ in range(_ATTEMPTS):
        replies = commands.run_many(
            client, "ensure", [_call(keys, era, groups_of[keys], counted) for keys, counted in left.items()]
        )
        again = {}
        for keys, reply in zip(left, replies, strict=True):
            if commands.is_of_one_partition(reply):
                troubles.append(ForeignData(f"{keys.stream} cannot be made: {reply}. See `bus doctor`."))
                continue
            uncounted, giving, remade, resetting = check(reply)
            restored |= bool(remade)
            for group in giving:
                try:
                    give_back(client, keys, commands.text(group))
                except (ForeignData, ServerError) as error:
                    troubles.append(ForeignData(f"What waits in {keys.stream} cannot be given back: {error}"))
            for group in resetting:
                try:
                    resets.finish(client, keys, commands.text(group))
                except (ForeignData, ServerError) as error:
                    troubles.append(ForeignData(f"The reset of {keys.stream} cannot be ended: {error}"))
            if uncounted:
                again[keys] = dict(_counted(client, keys.stream, asked) for asked in uncounted)
        if not again:
            return restored
        left = again
    names = ", ".join(keys.stream for keys in left)
    raise BusError(f"Groups cannot be made on {names}: the streams are made anew all the time.")


def _call(
    keys: PartitionKeys, era: str, groups: Sequence[GroupSpec], counted: dict[str, str]
) -> tuple[list[str], list[Argument]]:
    names = [name for group in groups for name in keys.of_gone_group(group.name)]
    args: list[Argument] = [era]
    for group in groups:
        args += [group.name, group.start, counted.get(group.name, "")]
    return [keys.stream, *names], args


def _counted(client: Client, stream: str, asked: Sequence[Any]) -> tuple[str, str]:
    """Count for ensure.lua; return the name of the group, and the argument with the count."""
    group, id, basis, added = (commands.text(part) for part in asked)
    offset = int(added) - counting.count(client, stream, id, basis)
    return group, f"{id} {offset} {basis}"


def give_back(client: Client, keys: PartitionKeys, group: str) -> None:
    """Make pending again what waits in a group that was made again. Raises BusUnavailable."""
    own = [keys.stream, keys.retry(group), keys.held(group), keys.state(group)]
    at = b"0"
    while at:
        reply = commands.run_many(client, "giveback", [(own, [group, MESSAGES_A_SCRIPT, at])])[0]
        if commands.is_nogroup(reply):
            return  # gone again: then it begins anew when the group is made again
        at = check(reply)
