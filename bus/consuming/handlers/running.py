"""Unwraps a handler: its name, and the function that a call of it runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from bus.errors import ConfigurationError

Kind = Literal["plain", "coroutine", "generator", "async generator"]

#: What the decorators of contextlib make of a function: to call it runs nothing of that function.
_MAKES_CONTEXTS = {contextlib.contextmanager(iter).__code__, contextlib.asynccontextmanager(aiter).__code__}

#: Types of what most handlers return that return anything: looked at no further.
_PLAIN = frozenset((bool, int, float, str, bytes, list, tuple, dict, set))


def name_of(handler: Any) -> str:
    """Return module and name of the function, or of the object's class. A reload of the module keeps them."""
    handler = unpartialled(handler)
    if not hasattr(handler, "__qualname__"):
        handler = type(handler)
    return f"{handler.__module__}.{handler.__qualname__}"


def unpartialled(handler: Any) -> Any:
    """Return what is behind functools.partial."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def kind_of(handler: Any) -> Kind:
    """Return the kind of thing that a call of the handler gives. Resolves a lazy Celery task."""
    runs = _runs(handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(runs):
        return "coroutine"
    if inspect.isasyncgenfunction(runs):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(runs) else "plain"


def check_runs(handler: Any, where: str) -> None:
    """Raise ConfigurationError if a call of the handler does not run it. `where`: begins the error."""
    if isinstance(handler, type):
        raise ConfigurationError(
            f"{where}: {handler!r} is a class; to call it would only make an object. Subscribe a function, a "
            "method, or an object with __call__."
        )
    if getattr(_runs(handler), "__code__", None) in _MAKES_CONTEXTS:
        raise ConfigurationError(
            f"{where}: the handler is a context manager, so a call of it runs nothing. Write a function "
            "without @contextmanager, and use `with` in it."
        )
    kind = kind_of(handler)
    if kind in ("generator", "async generator"):
        raise ConfigurationError(
            f"{where}: the handler has a `yield`, so a call of it makes a generator and runs nothing. "
            "Write a function without `yield`; for many messages at once use batch=."
        )
    if kind == "coroutine" and _is_task(handler):
        raise ConfigurationError(
            f"{where}: Celery does not run a task that is `async def`. Subscribe the function itself."
        )


def is_lazy(handler: Any) -> bool:
    """True for a shared_task of Celery that nobody has asked for yet: it may have no app, so it is looked at
    later.
    """
    return hasattr(type(handler), "_get_current_object")


def refuse_unrun(result: object) -> None:
    """Raise TypeError if a handler returned something that is still to be run: the handler has not run.

    Behind a plain function (a decorator, for example) an `async def` function, a generator, or a decorator
    that lacks its parentheses is not known as one. Without this check its message would be settled as done.
    """
    if result is None or type(result) in _PLAIN:
        return
    if hasattr(result, "__await__"):
        _close(result)
        raise TypeError(
            "The handler returned an awaitable, so it has not run. Subscribe the `async def` function "
            "itself, or one that is made by `async def` too."
        )
    if isinstance(result, Iterator | AsyncIterator) and not _has_happened(result):
        _close(result)
        raise TypeError(
            f"The handler returned a {type(result).__name__}, so it has not run: nobody iterates over it. "
            "Write a function that does its work before it returns."
        )
    if callable(result):
        is_context = isinstance(result, contextlib.ContextDecorator | contextlib.AsyncContextDecorator)
        lacks = "enters it by `with`" if is_context else "calls it"
        raise TypeError(
            f"The handler returned a {type(result).__name__}, so it has not run: nobody {lacks}. Does a "
            "decorator lack its parentheses? If the handler did its work, have it return nothing."
        )


def _has_happened(iterator: object) -> bool:
    """True for a file or a cursor of a database, which iterate over what is there already."""
    return isinstance(iterator, io.IOBase) or hasattr(iterator, "execute")


def _close(result: object) -> None:
    """Have Python not warn of what will never run."""
    if isinstance(result, types.CoroutineType | types.GeneratorType):
        result.close()


def _runs(handler: Any) -> Any:
    """Return the function that a call of the handler runs."""
    handler = unpartialled(handler)
    if inspect.isroutine(handler):
        return handler
    if _is_task(handler):
        return _runs(handler.run)
    return type(handler).__call__


def _is_task(handler: Any) -> bool:
    """True for a Celery task: a call of it runs its method `run`."""
    return callable(getattr(handler, "run", None)) and hasattr(handler, "apply_async")
