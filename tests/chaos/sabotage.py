"""Breaks one promise of the product, in this process alone: to prove that the judge notices.

Nothing of this can be switched on in the product; the classes here take the place of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import bus.consuming.calls
import bus.consuming.fence
import bus.consuming.mending
import workers.consumer
import workers.slices.handling
import workers.slices.slice
from bus.consuming.lane import Lane
from bus.consuming.turn import Turns
from bus.errors import ServerError
from bus.format.lane_id import LaneId
from bus.streams.commands import Script, script
from bus.streams.connect import error_of
from bus.values import Message
from workers.membership.homes import View
from workers.membership.keeper import Keeper
from workers.slices.dispatch import Failed
from workers.slices.handling import Handling


def take_place(saboteur: type, module: ModuleType, *methods: str) -> None:
    """Have the class take the place of its base in the module.

    It must override these methods of it. Where the product has renamed one, the sabotage would do
    nothing and prove nothing: that is an error here.
    """
    base = saboteur.__mro__[1]
    missing = [name for name in methods if name not in vars(saboteur) or not hasattr(base, name)]
    assert not missing, f"{base.__name__} has no {missing} any more"
    assert vars(module)[base.__name__] is base
    setattr(module, base.__name__, saboteur)


# ---------------------------------------------------------------------- no fence


class UnfencedTurns(Turns):
    """Settles and fetches whoever holds the lease: no proof is ever refused."""

    def prove_by(self, leases: Any) -> None:
        if isinstance(leases, ServerError):
            raise error_of(leases)
        self.proved = self._clock()


def no_watch(lanes: Sequence[Lane]) -> tuple[Any, ...]:
    """Ask something instead of the WATCH, so that there are as many replies."""
    return ("PING",)


class StubbornKeeper(Keeper):
    """Keeps lanes whose leases belong to others by now."""

    def _drop_lost(self, view: View, owned: dict[LaneId, str]) -> None:
        return

    def _give_up(self, assigned: set[LaneId]) -> None:
        owned = self._scheduler.owned()
        current = self._leases.read(owned)
        super()._give_up(assigned | {lane for lane, lease in owned.items() if current.get(lane) != lease})


@cache
def unfenced_script(name: str) -> Script:
    """The product's script without its look at the lease."""
    found = script(name)
    text, cuts = re.subn(rb"if current ~= .* then return \{0, current\} end", b"", found.text)
    assert cuts == 1, f"{name}.lua does not look at the lease as it did"
    return dataclasses.replace(found, text=text, sha=hashlib.sha1(text, usedforsecurity=False).hexdigest())


def no_fence() -> None:
    take_place(UnfencedTurns, workers.slices.slice, "prove_by")
    assert bus.consuming.fence.watch([])[0] == "WATCH"
    bus.consuming.fence.watch = no_watch
    take_place(StubbornKeeper, workers.consumer, "_drop_lost", "_give_up")
    for module in (bus.consuming.calls, bus.consuming.mending):
        assert "script" in vars(module), module
        vars(module)["script"] = unfenced_script


# ---------------------------------------------------------------------- no durable retries


class ForgetfulHandling(Handling):
    """Acknowledges a failed message and remembers only in memory that it is to be tried again."""

    def fail(self, lane: Lane, message: Message, failed: Failed) -> None:
        if failed.kind != "retry":
            super().fail(lane, message, failed)
            return
        self._progress.stopped(self._slot)
        lane.done(message)
        again = copy.copy(message)
        again.attempt += 1
        handle = self.dispatcher(lane).handle
        later = threading.Timer(failed.delay, lambda: handle(again))
        later.daemon = True
        later.start()


def no_retries() -> None:
    take_place(ForgetfulHandling, workers.slices.handling, "fail")


# ---------------------------------------------------------------------- no recovery


class CarelessLane(Lane):
    """Never looks for what its last owner left behind."""

    __slots__ = ()

    @property
    def recovering(self) -> bool:
        return False

    @recovering.setter
    def recovering(self, _value: bool) -> None:
        return


def no_recovery() -> None:
    take_place(CarelessLane, workers.slices.slice, "recovering")


WAYS: dict[str, Callable[[], None]] = {"fence": no_fence, "retries": no_retries, "recovery": no_recovery}


def commit(way: str) -> None:
    """Break the promise of this name; "" breaks none."""
    if way:
        WAYS[way]()
