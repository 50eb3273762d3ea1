"""While the server's memory is full, all that operators do works: that is when they must do something."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from bus.cli import tree
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.errors import BusFull
from bus.format.keys import PartitionKeys
from bus.models import Topic
from bus.operating import deadletters, declarations, delayed, operate, positions, targets
from bus.operating.deadletters import Selection
from bus.operating.delayed import DelayedRef
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.upkeep import retention
from bus.values import TopicSpec

ADA = operate.Actor("cli", "ada")
TOPIC, GROUP = "rents", "stock"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_servers]


class Scene:
    """A topic of two partitions with a group, a dead letter and a delayed message; and no memory left."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        operate.create_topic(bus, TOPIC, partitions=2, actor=ADA)
        operate.create_group(bus, TOPIC, GROUP, actor=ADA)
        self.id = bus.publish(TOPIC, 1, key="a").id
        self.keys: PartitionKeys = bus.keys.partition(TOPIC, bus.publish(TOPIC, 2, key="a").partition)
        self.partition = int(self.keys.due_member.rpartition(":")[2])
        bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", self.keys.stream, ">")
        bus.client.call("XACK", self.keys.stream, GROUP, self.id)
        bus.client.call("XADD", self.keys.dead(GROUP), "7-0", "id", self.id, "reason", "x", "v", "1")
        self.waits = DelayedRef(self.partition, int(bus.publish(TOPIC, 3, key="a", delay=3600).id[1:]))

    def fill(self) -> None:
        self.bus.client.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(BusFull):
            self.bus.publish(TOPIC, 4)

    def hints(self) -> int:
        return int(self.bus.client.call("XLEN", self.bus.keys.control))

    def groups(self) -> dict[str, GroupSpec]:
        return {group.name: group for group in self.bus.registry.groups(TOPIC)}

    def in_redis(self) -> set[str]:
        """The groups that the stream has."""
        return {raw[1].decode() for raw in self.bus.client.call("XINFO", "GROUPS", self.keys.stream)}


@pytest.fixture
def scene(server: EmbeddedServer, prefix: str) -> Iterator[Scene]:
    bus = Bus(server.url, prefix=prefix)
    yield Scene(bus)
    bus.client.call("CONFIG", "SET", "maxmemory", 0)
    bus.close()


def create_topic(scene: Scene) -> None:
    operate.create_topic(scene.bus, "wages", partitions=3, actor=ADA)
    assert scene.bus.registry.specs()["wages"].partitions == 3


def change_topic(scene: Scene) -> None:
    operate.change_topic(scene.bus, TOPIC, retention=timedelta(seconds=1), partitions=3, actor=ADA)
    assert scene.bus.registry.specs()[TOPIC].retention == timedelta(seconds=1)
    assert scene.bus.registry.specs()[TOPIC].partitions == 3


def save_topic(scene: Scene) -> None:
    operate.save_topic(scene.bus, Topic(name="wages", origin="admin"), actor=ADA)
    assert "wages" in scene.bus.registry.specs()


def delete_topic(scene: Scene) -> None:
    operate.delete_topic(scene.bus, TOPIC, confirm=TOPIC, actor=ADA)
    assert scene.bus.client.call("EXISTS", scene.keys.stream, scene.keys.delayed) == 0


def create_group(scene: Scene) -> None:
    operate.create_group(scene.bus, TOPIC, "fresh", start="2020-01-01T00:00:00+00:00", actor=ADA)
    assert "fresh" in scene.groups()
    assert "fresh" in scene.in_redis()


def pause_group(scene: Scene) -> None:
    operate.pause_group(scene.bus, TOPIC, GROUP, actor=ADA)
    assert scene.groups()[GROUP].paused


def resume_group(scene: Scene) -> None:
    scene.bus.client.call("CONFIG", "SET", "maxmemory", 0)
    operate.pause_group(scene.bus, TOPIC, GROUP, actor=ADA)
    scene.fill()
    operate.resume_group(scene.bus, TOPIC, GROUP, actor=ADA)
    assert not scene.groups()[GROUP].paused


def delete_group(scene: Scene) -> None:
    operate.delete_group(scene.bus, TOPIC, GROUP, actor=ADA)
    assert scene.groups() == {}
    assert scene.in_redis() == set()


def reset_group(scene: Scene) -> None:
    plan = positions.plan(scene.bus, TOPIC, GROUP, targets.at("earliest"))
    done = operate.reset_group(scene.bus, plan, actor=ADA)
    assert done.moves[0].after.offset == 0
    after = positions.plan(scene.bus, TOPIC, GROUP, targets.shift(0))
    assert [(move.before.offset, move.pending) for move in after.moves] == [(0, 0)] * len(after.moves)


def retry_dead_letters(scene: Scene) -> None:
    tally = operate.retry_dead_letters(scene.bus, TOPIC, GROUP, Selection(), actor=ADA)
    assert (tally.waiting, tally.total) == (1, 1)


def discard_dead_letters(scene: Scene) -> None:
    tally = operate.discard_dead_letters(scene.bus, TOPIC, GROUP, Selection(), actor=ADA)
    assert (tally.discarded, tally.total) == (1, 1)
    assert deadletters.count(scene.bus, TOPIC, GROUP).kept == 0


def cancel_delayed(scene: Scene) -> None:
    assert operate.cancel_delayed(scene.bus, TOPIC, [scene.waits], actor=ADA).cancelled == 1
    assert delayed.count(scene.bus, TOPIC) == 0


VERBS: dict[str, Callable[[Scene], None]] = {
    verb.__name__: verb
    for verb in (
        create_topic, change_topic, save_topic, delete_topic, create_group, pause_group, resume_group,
        delete_group, reset_group, retry_dead_letters, discard_dead_letters, cancel_delayed,
    )
}  # fmt: skip

#: Verbs that nobody waits for: their hint would wake watchers for nothing.
SILENT = {"discard_dead_letters", "cancel_delayed"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works(scene: Scene, verb: str) -> None:
    scene.fill()
    hints = scene.hints()
    VERBS[verb](scene)
    # Workers learn of it at once too
    assert (scene.hints() > hints) == (verb not in SILENT)


def test_these_are_all_the_verbs() -> None:
    """One that is added to bus.operating.operate is to be tried here."""
    verbs = {
        name
        for name, found in inspect.getmembers(operate, inspect.isfunction)
        if "actor" in inspect.signature(found).parameters
    }
    assert {verb for verb in verbs if not verb.startswith("_")} == set(VERBS)


COMMANDS = [
    "topic create wages --partitions 2",
    f"topic change {TOPIC} --retention 1h --apply",
    f"topic delete {TOPIC} --confirm {TOPIC} --apply",
    f"group create {TOPIC} fresh",
    f"group pause {TOPIC} {GROUP}",
    f"group resume {TOPIC} {GROUP}",
    f"group reset {TOPIC} {GROUP} --to earliest --apply",
    f"group delete {TOPIC} {GROUP} --apply",
    f"dead retry {TOPIC} {GROUP} --all --apply",
    f"dead discard {TOPIC} {GROUP} --all --apply",
    f"delayed cancel {TOPIC} --all --apply",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_works_without_a_database_too(
    scene: Scene, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.fill()
    code = tree.run(Session(lambda: scene.bus, Direct), command.split(), "bus")
    assert code == 0, capsys.readouterr().err


def test_a_worker_that_starts_declares_its_groups(scene: Scene) -> None:
    # Given a partition that has lost its stream, too
    scene.fill()
    scene.bus.client.call("DEL", scene.keys.stream)
    scene.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name="fresh", ordering="none")])
    assert scene.in_redis() == {GROUP, "fresh"}
    # And one of which the server knows nothing yet
    other = Bus(scene.bus.endpoint.safe_url, prefix=f"{scene.bus.settings.prefix}-new")
    try:
        other.registry.project([TopicSpec(name="wages")])
        assert other.client.call("HGET", other.keys.meta, "layout") == b"1"
    finally:
        other.close()


def test_topics_are_synchronised(scene: Scene) -> None:
    Topic(name="wages", origin="admin").save()
    scene.fill()
    report = declarations.sync(scene.bus)
    assert "wages" in report.projected
    assert "wages" in scene.bus.registry.specs()


def test_what_is_old_and_settled_is_trimmed(scene: Scene) -> None:
    scene.bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", scene.keys.stream, ">")
    pending = scene.bus.client.call("XPENDING", scene.keys.stream, GROUP, "-", "+", 10)
    scene.bus.client.call("XACK", scene.keys.stream, GROUP, *(row[0] for row in pending))
    scene.fill()
    [seconds, _] = scene.bus.client.call("TIME")
    while scene.bus.client.call("TIME")[0] == seconds:
        pass  # the shortest retention there is must have gone by
    spec = TopicSpec(name=TOPIC, partitions=2, retention=timedelta(milliseconds=1))
    assert retention.trim(scene.bus, spec) == 1
