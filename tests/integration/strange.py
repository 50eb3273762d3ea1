"""A worker on two topics, of which one gets what no Jitney writes, and all that may be looked at there."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern

import workers.scheduling.owned
import workers.scheduling.watcher
from admin_ui import urls
from bus import default
from bus.cli import tree
from bus.cli.session import Session
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.format.partition import partition_of
from bus.streams.embedded import EmbeddedServer
from bus.topics import declared
from bus.topics.declared import Declared
from bus.values import Message, RetryPolicy
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until

PARTITIONS = 2
SICK, WELL = "sick", "well"
#: Group → ordering. Each reads both topics.
GROUPS = {"keyed": "key", "strict": "partition", "loose": "none"}
SOON = RetryPolicy(attempts=3, delay=0.02, factor=1, jitter=0)

Place = tuple[str, int]
"""A topic and a partition of it."""


def places(topic: str) -> list[Place]:
    return [(topic, partition) for partition in range(PARTITIONS)]


class World:
    """The bus, its worker, and what its handlers have done."""

    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self.bus = Bus(server.url, prefix=prefix)
        for topic in (SICK, WELL):
            self.bus.topic(topic, partitions=PARTITIONS, retention="7d")
        self.bus.registry.project(self.bus.declared.specs().values())
        self._lock = threading.Lock()
        self._done: dict[tuple[str, str], set[Any]] = {}
        self._numbers = iter(range(10**9))
        self.worker = InlineWorker(self.bus, self._subscriptions())

    def _subscriptions(self) -> Iterator[Subscription]:
        for topic in (SICK, WELL):
            for group, ordering in GROUPS.items():
                yield Subscription(
                    topic=topic, group=group, handler=self._handler(group), ordering=ordering, retry=SOON
                )

    def _handler(self, group: str) -> Callable[[Message], None]:
        def handle(message: Message) -> None:
            value = message.value
            if isinstance(value, dict) and message.attempt <= value.get("fail", 0):
                raise ValueError("told to fail")
            if isinstance(value, dict) and "n" in value:
                with self._lock:
                    self._done.setdefault((message.topic, group), set()).add(value["n"])

        return handle

    # ------------------------------------------------------------------ doing and seeing

    def publish(self, topic: str, **what: Any) -> list[int]:
        """A few messages to all partitions; their numbers."""
        return [number for place in places(topic) for number in self._publish_to(place, **what)]

    def _publish_to(self, place: Place, **what: Any) -> list[int]:
        topic, partition = place
        key = next(name for name in map(str, range(100)) if partition_of(name, PARTITIONS) == partition)
        numbers = [next(self._numbers) for _ in range(3)]
        for number in numbers:
            self.bus.publish(topic, {"n": number, **what}, key=key)
        return numbers

    def has_handled(self, topic: str, numbers: list[int]) -> bool:
        with self._lock:
            return all(self._done.get((topic, group), set()).issuperset(numbers) for group in GROUPS)

    def assert_goes_on(self, topic: str, timeout: float = 20, **what: Any) -> None:
        """What is published now is handled by all groups."""
        self.assert_all_go_on(places(topic), timeout, what)

    def assert_all_go_on(self, healthy: Sequence[Place], timeout: float, *kinds: dict[str, Any]) -> None:
        """The same of single partitions and of several kinds of messages, all at once."""
        published = [(place, self._publish_to(place, **what)) for what in kinds for place in healthy]
        for (topic, partition), numbers in published:
            handled = partial(self.has_handled, topic, numbers)
            wait_until(handled, timeout, f"{topic}/{partition} to be consumed")


@contextmanager
def consumed(
    server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A world that is at work, as the default bus of this process too, and waits less than usual."""
    monkeypatch.setattr(declared, "by_code", Declared())
    soon = RetryPolicy(delay=0.02, max_delay=0.2, jitter=0.5)
    monkeypatch.setattr(workers.scheduling.owned, "BACKOFF", soon)
    monkeypatch.setattr(workers.scheduling.watcher, "STRANGER_SECONDS", 0.2)
    settings.BUS = {"URL": server.url, "PREFIX": prefix}
    world = World(server, prefix)
    with world.worker:
        world.assert_goes_on(WELL)
        world.assert_goes_on(SICK)
        yield world
    world.bus.close()
    default.reset()


# ---------------------------------------------------------------------- every key


def every_key(bus: Bus, topic: str, partition: int, group: str) -> dict[str, str]:
    """Name in bus.keys → the key, for all that Keys and PartitionKeys can name, now or later."""
    given = {"topic": topic, "partition": partition, "group": group, "lane": "0", "message_id": "m1"}
    found: dict[str, str] = {}
    for owner in (bus.keys, bus.keys.partition(topic, partition)):
        for name in dir(type(owner)):
            if name.startswith("_") or name == "prefix":
                continue
            member = getattr(owner, name)
            if callable(member):
                signature = inspect.signature(member)
                if signature.return_annotation != "str":
                    continue  # it names no key
                member = member(**{each: given[each] for each in signature.parameters})
            if isinstance(member, str) and member.startswith(f"{bus.keys.prefix}:") and "*" not in member:
                found[name] = member
    return found


# ---------------------------------------------------------------------- every page and command


def every_page(topic: str, group: str) -> Iterator[str]:
    """The addresses of all pages that may be looked at."""

    class Site:
        name = "admin"

        def admin_view(self, view: Any) -> Any:
            return view

    for base, patterns in (
        ("overview/", urls.overview_urls(Site())),  # type: ignore[arg-type]
        ("worker/", urls.worker_urls(Site())),  # type: ignore[arg-type]
        ("topic/", urls.topic_urls(Site())),  # type: ignore[arg-type]
    ):
        for pattern in patterns:
            assert isinstance(pattern, URLPattern)
            route = re.sub("<str:group_name>", group, re.sub("<str:name>", topic, str(pattern.pattern)))
            if not route.endswith(("pause/", "resume/")):
                yield f"/admin/jitney/{base}{route}"
    yield "/admin/jitney/topic/"
    yield "/admin/jitney/auditrecord/"


def assert_pages_answer(client: Client, topic: str, group: str) -> None:
    for path in every_page(topic, group):
        confirms = path.endswith(("retry/", "discard/"))
        queries: tuple[dict[str, str], ...] = ({},) if "auditrecord" in path else ({}, {"live": "1"})
        for query in ({"all": "1"},) if confirms else queries:
            response = client.get(path, query)
            assert response.status_code in ((200, 302) if confirms else (200,)), (path, response.content)


def readings(topic: str, group: str) -> list[list[str]]:
    """Every command that shows what is on the bus."""
    return [
        ["topics"], ["topic", "list"], ["topic", "describe", topic], ["groups"], ["group", "list", topic],
        ["group", "describe", topic, group], ["tail", topic], ["dead", "list", topic, group],
        ["dead", "show", topic, group, "0/1-1"], ["pending", "list", topic, group],
        ["delayed", "list", topic],
        ["workers"], ["doctor"],
    ]  # fmt: skip


def commands(topic: str, group: str) -> list[list[str]]:
    """Every command that changes nothing: those, and the plans of the others."""
    return [
        *readings(topic, group), ["dead", "retry", topic, group, "--all"],
        ["delayed", "cancel", topic, "--all"], ["topic", "delete", topic], ["group", "delete", topic, group],
    ]  # fmt: skip


def assert_commands_answer(bus: Bus, operator: Any, topic: str, group: str) -> None:
    """Each ends with an exit code; an exception would come out of `tree.run`."""
    for arguments in commands(topic, group):
        for more in ([], ["--json"]):
            code = tree.run(Session(lambda: bus, operator), [*arguments, *more], "bus")
            assert code in (0, 1), (arguments, code)
