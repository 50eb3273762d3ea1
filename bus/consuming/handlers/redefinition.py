"""Tells whether a second handler of a group is the first one, defined again, or another function.

A module that is loaded again (autoreload, `importlib.reload`, a module run as `__main__` and then imported)
defines its handlers again. Names alone cannot tell this from two functions behind one decorator.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from bus.consuming.handlers.running import is_lazy, name_of, unpartialled


@dataclass(frozen=True, slots=True)
class Origin:
    """The module whose code was running when something was subscribed."""

    module: str
    file: str
    run: object | None
    """What stands for one run of the module: another object each time it is loaded. Compare it by `is`.
    None: it cannot be told, or the code may have run long after the module was loaded (`__main__`).
    """

    @property
    def is_known(self) -> bool:
        return self.run is not None


def origin() -> Origin:
    """Return the origin of what is subscribed now: the innermost module whose import is under way."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    if frame is None:
        return Origin("", "", None)
    name, file = frame.f_globals.get("__name__", ""), os.path.abspath(frame.f_code.co_filename)
    if name == "__main__":
        return Origin(name, file, None)
    return Origin(
        name, file, getattr(sys.modules.get(name), "__spec__", None) or frame.f_globals.get("__spec__")
    )


def same_name(one: Any, other: Any) -> bool:
    """True if both handlers have one name, or would have if their module were not run as `__main__`."""
    module, name = _parts(one)
    other_module, other_name = _parts(other)
    return name == other_name and _same_module(module, other_module)


def is_redefined(old: Any, old_in: Origin, new: Any, new_in: Origin) -> bool:
    """True if `new` is `old` defined again, so that it may take its place. Both have the same name."""
    if old_in.is_known and new_in.is_known:
        if old_in.run is new_in.run:
            return False  # one run of a module has made both
        if (old_in.module, old_in.file) == (new_in.module, new_in.file):
            return True  # it was loaded again, and may have changed
    elif _is_from_a_shell(old) and _is_from_a_shell(new):
        return True
    return _Comparison().same(old, new)


def _parts(handler: Any) -> tuple[str, str]:
    handler = unpartialled(handler)
    name = name_of(handler)
    named = handler if hasattr(handler, "__qualname__") else type(handler)
    return str(named.__module__), name.removeprefix(f"{named.__module__}.")


def _same_module(one: str, other: str) -> bool:
    if one == other:
        return True
    if "__main__" not in (one, other):
        return False
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (one, other)]
    return None not in files and os.path.abspath(str(files[0])) == os.path.abspath(str(files[1]))


def _is_from_a_shell(handler: Any) -> bool:
    """True for a function at the top of what somebody types: the next of its name takes its place."""
    if not isinstance(handler, FunctionType) or "<" in handler.__qualname__:
        return False
    is_typed = inspect.unwrap(handler).__code__.co_filename.startswith("<")
    main = sys.modules.get("__main__")
    return is_typed or (handler.__module__ == "__main__" and not hasattr(main, "__file__"))


class _Comparison:
    """Compares two handlers by what they consist of: code, where it is written, and all that it encloses.

    A decorator without functools.wraps hides a function's name, but keeps the function: in its closure, its
    defaults, or its object. What cannot be compared is not the same.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[int, int], tuple[Any, Any]] = {}
        """By their ids, what is compared already: objects may refer to themselves. Kept, since an id of
        what is gone may be another's.
        """

    def same(self, one: Any, other: Any) -> bool:
        pair = (id(one), id(other))
        if one is other or pair in self._under_way:
            return True
        self._under_way[pair] = one, other
        if isinstance(one, type) and isinstance(other, type):
            return self._same_class(one, other)
        if not self.same(type(one), type(other)) or is_lazy(one):
            return False
        if isinstance(one, FunctionType):
            return self._same_function(one, other)
        if inspect.ismethod(one):
            return self.same(one.__func__, other.__func__) and self.same(one.__self__, other.__self__)
        if isinstance(one, functools.partial):
            return self.same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
        if isinstance(one, tuple | list):
            return len(one) == len(other) and all(map(self.same, one, other))
        if isinstance(one, dict):
            return list(one) == list(other) and all(map(self.same, one.values(), other.values()))
        if isinstance(one, str | bytes | int | float | complex | frozenset | set):
            return bool(one == other)
        return self._same_object(one, other)

    def _same_function(self, one: FunctionType, other: FunctionType) -> bool:
        code, other_code = one.__code__, other.__code__
        return (
            # Two codes are equal also where their files differ.
            code == other_code
            and os.path.abspath(code.co_filename) == os.path.abspath(other_code.co_filename)
            and _same_module(str(one.__module__), str(other.__module__))
            and self.same(_held(one), _held(other))
        )

    def _same_class(self, one: type, other: type) -> bool:
        return (
            one.__qualname__ == other.__qualname__
            and _same_module(one.__module__, other.__module__)
            and self.same(one.__bases__, other.__bases__)
            # One that a function makes may enclose a handler.
            and self.same(_body(one), _body(other))
        )

    def _same_object(self, one: Any, other: Any) -> bool:
        state = _state(one)
        return state is not None and self.same(state, _state(other))


def _held(function: FunctionType) -> tuple[Any, ...]:
    """Return what a function holds besides its code."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # nothing has been put there yet
            cells.append(None)
    return (cells, function.__defaults__, function.__kwdefaults__, function.__dict__)


def _body(owner: type) -> dict[str, Any]:
    made_by_python = ("__dict__", "__weakref__", "__module__")
    return {name: value for name, value in vars(owner).items() if name not in made_by_python}


def _state(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object; None if it is one of C that shows none."""
    if isinstance(value, staticmethod | classmethod):
        return {"function": value.__func__}
    slots = [
        name
        for owner in type(value).__mro__
        for name, member in vars(owner).items()
        if inspect.ismemberdescriptor(member)
    ]
    if not slots and not hasattr(value, "__dict__") and "__slots__" not in vars(type(value)):
        return None
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name, None) for name in slots}}
