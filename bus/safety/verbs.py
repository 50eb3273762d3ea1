"""Marks the verbs of operators, so that BUS["READ_ONLY"] refuses them wherever they are called from."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from bus.errors import ReadOnly

if TYPE_CHECKING:
    from bus.client import Bus

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


def check_writable(bus: Bus, name: str) -> None:
    """Raise ReadOnly if this bus is for looking only. `name`: the verb, as the audit has it."""
    if bus.settings.read_only:
        raise ReadOnly(f"{name!r} is refused here: READ_ONLY is set (BUS['READ_ONLY'] or BUS_READ_ONLY).")


def verb(
    name: str,
) -> Callable[
    [Callable[Concatenate[Bus, _Arguments], _Answer]], Callable[Concatenate[Bus, _Arguments], _Answer]
]:
    """Mark a function as an operator's verb. It takes the bus first."""

    def mark(
        function: Callable[Concatenate[Bus, _Arguments], _Answer],
    ) -> Callable[Concatenate[Bus, _Arguments], _Answer]:
        @wraps(function)
        def checked(bus: Bus, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
            check_writable(bus, name)
            return function(bus, *args, **kwargs)

        return checked

    return mark
