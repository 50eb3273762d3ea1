"""The table of handlers, and the errors of a wrong `subscribe`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import bus
from bus import default
from bus.consuming.handlers.running import kind_of
from bus.consuming.subscriptions import MAX_BATCH, Subscription, Subscriptions
from bus.errors import ConfigurationError
from bus.values import RetryPolicy


def handle(message):
    """A handler."""


def handle_too(message):
    """Another one."""


async def handle_async(message):
    """One that is asynchronous."""


def subscription(**options) -> Subscription:
    return Subscription(**{"topic": "orders", "group": "inventory", "handler": handle, **options})


def test_a_handler_is_found_by_topic_and_group():
    table = Subscriptions()
    table.add(subscription())
    found = table.get("orders", "inventory")
    assert found is not None
    assert found.handler is handle
    assert table.get("orders", "ledger") is None
    assert table.get("alerts", "inventory") is None


def test_the_table_is_in_the_order_of_topic_and_group():
    table = Subscriptions()
    for topic, group in [("b", "x"), ("a", "z"), ("a", "y")]:
        table.add(subscription(topic=topic, group=group))
    assert [(each.topic, each.group) for each in table] == [("a", "y"), ("a", "z"), ("b", "x")]
    assert len(table) == 3
    table.clear()
    assert len(table) == 0


def test_a_module_that_is_imported_twice_may_subscribe_twice():
    table = Subscriptions()
    table.add(subscription())
    table.add(subscription(batch=5))
    found = table.get("orders", "inventory")
    assert found is not None
    assert found.batch == 5


def test_a_second_handler_for_a_group_is_an_error_that_names_both():
    table = Subscriptions()
    table.add(subscription())
    with pytest.raises(
        ConfigurationError, match=r"already has the handler .*\.handle; .*\.handle_too needs a group"
    ):
        table.add(subscription(handler=handle_too))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"topic": "or ders"}, "Topic 'or ders' is not a valid name"),
        ({"group": ""}, "Group '' is not a valid name"),
        ({"group": ".."}, "Group '..' cannot be created"),
        ({"ordering": "keys"}, "ordering must be one of key, partition, none, not 'keys'"),
        ({"batch": 0}, "batch must be from 1 to 10,000"),
        ({"batch": MAX_BATCH + 1}, "batch must be from 1 to 10,000"),
        ({"batch": True}, "batch must be from 1 to 10,000"),
        ({"batch": "5"}, "batch must be from 1 to 10,000"),
        ({"batch": 2.5}, "batch must be from 1 to 10,000"),
        ({"retry": 3}, "retry must be a bus.RetryPolicy, not 3"),
        ({"time_limit": 0}, "time_limit must be more than 0 seconds"),
        ({"time_limit": "5"}, "time_limit must be more than 0 seconds"),
        ({"soft_time_limit": -1}, "soft_time_limit must be more than 0 seconds"),
        ({"handler": "handle"}, "'handle' is not callable"),
        ({"atomic": True}, "atomic must be True or the alias of a database"),
        ({"atomic": "default", "handler": handle_async}, "an async handler cannot be atomic"),
        ({"start": "newest"}, "'newest' is not a position"),
    ],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_a_wrong_option_is_an_error_that_says_what(options, why):
    table = Subscriptions()
    with pytest.raises(ConfigurationError, match=why):
        table.add(subscription(**options))
    assert len(table) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ordering": "none", "batch": MAX_BATCH, "time_limit": 0.5, "soft_time_limit": 10},
        {"handler": handle_async},
        {"start": "latest"},
        {"start": "2030-01-31T12:00+01:00"},
        {"retry": RetryPolicy(attempts=1)},
    ],
    ids="-".join,
)
def test_right_options_are_taken(options):
    table = Subscriptions()
    table.add(subscription(**options))
    assert len(table) == 1


# ---------------------------------------------------------------------- what cannot be run


def generate(_message):
    yield


async def generate_later(_message):
    yield


@contextlib.contextmanager
def enter(_message):
    yield


@contextlib.asynccontextmanager
async def enter_later(_message):
    yield


class Lazy:
    """Objects with handlers that do not run when they are called."""

    def __call__(self, _message):
        yield

    def method(self, _message):
        yield

    async def later(self, _message):
        yield


class Eager:
    def __call__(self, message):
        """One that runs."""


class Patient:
    async def __call__(self, message):
        """One that is awaited."""


class Task:
    """What a Celery task is, as far as it matters here."""

    def __init__(self, run):
        self.run = run

    def __call__(self, *arguments):
        return self.run(*arguments)

    def apply_async(self):
        """Never called."""


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (generate, "has a `yield`"),
        (generate_later, "has a `yield`"),
        (enter, "is a context manager"),
        (enter_later, "is a context manager"),
        (functools.partial(enter), "is a context manager"),
        (functools.partial(generate), "has a `yield`"),
        (functools.partial(functools.partial(generate_later)), "has a `yield`"),
        (Lazy(), "has a `yield`"),
        (Lazy().method, "has a `yield`"),
        (Lazy().later, "has a `yield`"),
        (lambda message: (yield message), "has a `yield`"),
        (Task(generate), "has a `yield`"),
        (Task(Lazy().method), "has a `yield`"),
        (Task(handle_async), "Celery does not run a task that is `async def`"),
        (Eager, "is a class"),
        (functools.partial(Lazy()), "has a `yield`"),
    ],
)
def test_what_is_called_and_does_not_run_is_refused_at_import(handler, why):
    table = Subscriptions()
    with pytest.raises(ConfigurationError, match=rf"subscribe\('orders', group='inventory'\): .*{why}"):
        table.add(subscription(handler=handler))
    assert len(table) == 0


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (handle, "plain"),
        (functools.partial(handle), "plain"),
        (Eager(), "plain"),
        (Eager().__call__, "plain"),
        (Task(handle), "plain"),
        (print, "plain"),
        (handle_async, "coroutine"),
        (functools.partial(handle_async), "coroutine"),
        (Patient(), "coroutine"),
    ],
)
def test_what_can_be_run_is_taken_for_what_it_is(handler, kind):
    Subscriptions().add(subscription(handler=handler))
    assert kind_of(handler) == kind


def test_a_handler_behind_a_decorator_that_iterates_over_it_can_be_run():
    def drained(function):
        @functools.wraps(function)
        def wrapper(message):
            for _ in function(message):
                pass

        return wrapper

    Subscriptions().add(subscription(handler=drained(generate)))


# ---------------------------------------------------------------------- two of one name


def hiding(function):
    """A decorator that hides the name, as one without functools.wraps does."""

    def wrapper(message):
        return function(message)

    return wrapper


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (hiding(handle), hiding(handle_too)),
        (hiding(hiding(handle)), hiding(hiding(handle_too))),
        (lambda message: handle(message, 1), lambda message: handle_too(message, 1)),
        (functools.partial(handle, extra=1), functools.partial(handle_too, extra=1)),
        (functools.partial(handle, extra=1), functools.partial(handle, extra=2)),
    ],
    ids=["decorated", "twice decorated", "lambdas", "partials", "arguments of partials"],
)
def test_a_second_function_whose_name_is_hidden_does_not_replace_the_first(one, other):
    table = Subscriptions()
    table.add(subscription(handler=one))
    with pytest.raises(ConfigurationError, match="already has the handler"):
        table.add(subscription(handler=other))
    found = table.get("orders", "inventory")
    assert found is not None
    assert found.handler is one


MODULE = """
import bus
from hidden_decorator import hiding
{0}
@bus.subscribe("orders", group="inventory")
@hiding
def one(message):
    return {0!r}
{1}
"""
SECOND = """
@bus.subscribe("orders", group="inventory")
@hiding
def two(message):
    pass
"""


class Kept:
    """A decorator that keeps the function in its object."""

    def __init__(self, function):
        self.function = function

    def __call__(self, message):
        return self.function(message)


def defaulting(function):
    """One that keeps it in a default."""

    def wrapper(message, run=function):
        return run(message)

    return wrapper


def enclosing(function):
    """One that makes a class for each function."""

    class Handler:
        __slots__ = ()

        def __call__(self, message):
            return function(message)

    return Handler()


def deep(function, depth=6):
    """One of many layers."""
    return hiding(function) if depth == 0 else deep(hiding(function), depth - 1)


@pytest.mark.parametrize(
    "decorator", [hiding, Kept, defaulting, enclosing, deep, lambda function: Kept(hiding(function))]
)
def test_however_functions_are_hidden_only_the_same_one_may_be_subscribed_again(decorator):
    table = Subscriptions()
    table.add(subscription(handler=decorator(handle)))
    table.add(subscription(handler=decorator(handle)))
    with pytest.raises(ConfigurationError, match="already has the handler"):
        table.add(subscription(handler=decorator(handle_too)))


def test_what_cannot_be_compared_is_refused():
    table = Subscriptions()
    table.add(subscription(handler=functools.partial(handle, lock=threading.Lock())))
    with pytest.raises(ConfigurationError, match="already has the handler"):
        table.add(subscription(handler=functools.partial(handle, lock=threading.Lock())))


HIDDEN = """
import bus
from hidden_decorator import {0}
@bus.subscribe("orders", group="inventory")
@{0}
def {1}(message):
    return {1!r}
"""
MADE = """
import hidden_decorator
hidden_decorator.{0}({1!r})
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes modules to import, beside one of decorators and a factory; the table is empty at first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(default, "subscriptions", Subscriptions())
    before = set(sys.modules)
    (tmp_path / "hidden_decorator.py").write_text(
        "import bus\n"
        "def hiding(function):\n    return lambda message: function(message)\n"
        "class Keeping:\n"
        "    def __init__(self, function):\n        self.function = function\n"
        "    def __call__(self, message):\n        return self.function(message)\n"
        "def make(answer):\n"
        "    @bus.subscribe('orders', group='inventory')\n"
        "    def made(message):\n        return answer\n"
        "def execute(answer):\n"
        "    exec(f'def made(message): return {answer!r}', globals())\n"
        "    bus.subscribe('orders', group='inventory')(made)\n"
    )

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "named"), [(HIDDEN, "hiding"), (HIDDEN, "Keeping"), (MADE, "make"), (MADE, "execute")]
)
def test_handlers_of_two_modules_are_told_apart_however_they_are_decorated_or_made(modules, text, named):
    # Given two modules whose handlers have one name: that of a function in a third module
    modules(one_module=text.format(named, "one"), two_module=text.format(named, "two"))
    importlib.import_module("one_module")
    # Then the second is refused, with the names of both modules, and the first stays
    with pytest.raises(ConfigurationError, match=r"subscribed by one_module.*subscribed by two_module"):
        importlib.import_module("two_module")
    assert default.subscriptions.get("orders", "inventory").handler(None) == "one"
    # And the first may be loaded again, changed or not
    importlib.reload(sys.modules["one_module"])
    modules(one_module="# changed\n" + text.format(named, "uno"))
    importlib.reload(sys.modules["one_module"])
    assert default.subscriptions.get("orders", "inventory").handler(None) == "uno"


OBJECT = """
import bus, functools

class Handler:
    def __call__(self, message, extra):
        return {0!r}

bus.subscribe("orders", group="inventory")(functools.partial(Handler(), extra=1))
"""
PLAIN = """
import bus
@bus.subscribe("orders", group="inventory")
def one(message):
    pass
"""
TWICE = """
if __name__ == "__main__":
    import two_module
"""


@pytest.mark.parametrize("text", [PLAIN, HIDDEN.format("Keeping", "one"), OBJECT.format("")])
@pytest.mark.parametrize("how", [["two_module.py"], ["-m", "two_module"]])
def test_a_module_that_is_run_and_then_imported_may_subscribe_twice(modules, text, how):
    folder = modules(two_module=text + TWICE)
    path = os.pathsep.join([str(Path(bus.__file__).parents[1]), str(folder)])
    ran = subprocess.run(
        [sys.executable, *how],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()


def test_two_functions_of_one_name_in_a_module_that_is_run_are_refused(modules):
    folder = modules(two_module=PLAIN + PLAIN)
    path = os.pathsep.join([str(Path(bus.__file__).parents[1]), str(folder)])
    ran = subprocess.run(
        [sys.executable, "two_module.py"], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, check=False,
    )  # fmt: skip
    assert b"already has the handler __main__.one" in ran.stderr


def test_what_is_typed_in_a_shell_may_be_typed_again(modules):
    path = str(Path(bus.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-"], input=(PLAIN + PLAIN.replace("pass", "print()")).encode(),
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a module of handlers and imports it, again where it is there; its table is empty at first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(default, "subscriptions", table := Subscriptions())
    (tmp_path / "hidden_decorator.py").write_text(
        "def hiding(function):\n    def wrapper(message):\n        return function(message)\n    return "
        "wrapper\n"
    )

    def write_and_import(text, again="reload"):
        (tmp_path / "hidden_consumers.py").write_text(text)
        importlib.invalidate_caches()
        if again == "anew":
            sys.modules.pop("hidden_consumers", None)
        if "hidden_consumers" in sys.modules:
            importlib.reload(sys.modules["hidden_consumers"])
        else:
            importlib.import_module("hidden_consumers")
        return table

    yield write_and_import
    for name in ("hidden_consumers", "hidden_decorator"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("again", ["reload", "anew"])
def test_a_module_that_is_loaded_again_replaces_its_handlers_also_where_it_has_changed(load, again):
    table = load(MODULE.format("", ""))
    first = table.get("orders", "inventory").handler
    assert load(MODULE.format("", ""), again).get("orders", "inventory").handler is not first
    assert load(MODULE.format("# changed", ""), again).get("orders", "inventory").handler(None) == "# changed"


def test_an_object_that_is_a_handler_is_replaced_too_when_its_module_is_loaded_again(load):
    load(OBJECT.format("before"))
    found = load(OBJECT.format("after")).get("orders", "inventory")
    assert found.handler(None) == "after"
    assert found.handler_name == "hidden_consumers.Handler"


def test_two_handlers_of_one_module_behind_one_decorator_are_refused_when_it_is_imported(load):
    with pytest.raises(ConfigurationError, match=r"have it use functools\.wraps"):
        load(MODULE.format("", SECOND))
