"""What a handler really is: its name, and what a call of it runs."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any, Literal

from bus.errors import ConfigurationError

Kind = Literal["plain", "coroutine", "generator", "async generator"]

#: What a plain function may return that has not run yet, and that nobody will run.
_NOT_RUN = (types.GeneratorType, types.AsyncGeneratorType, map, filter)


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


def refuse_awaitable(result: object) -> None:
    """Raise TypeError if a handler returned something that nobody awaits or iterates: it has not run.

    An `async def` handler or a generator behind a plain function (a decorator, for example) is not known as
    one. Without this check its message would be settled as done.
    """
    if result is None:
        return
    awaitable = hasattr(result, "__await__")
    if not awaitable and not isinstance(result, _NOT_RUN):
        return
    if isinstance(result, types.CoroutineType | types.GeneratorType):
        result.close()
    if awaitable:
        raise TypeError(
            "The handler returned an awaitable, so it has not run. Subscribe the `async def` function "
            "itself, or one that is made by `async def` too."
        )
    raise TypeError(
        f"The handler returned a {type(result).__name__}, so it has not run: nobody iterates over it. "
        "Write a function that does its work before it returns."
    )


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
