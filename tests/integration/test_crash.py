"""A slice that dies between any two commands of a turn leaves each message in exactly one place."""

from __future__ import annotations

import pytest

from bus.client import Bus
from bus.consuming import question
from bus.consuming.asked import Asked
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.errors import ReplyLost
from bus.format.keys import unpad_id
from bus.format.lane_id import LaneId
from bus.streams import commands
from bus.streams.connect import Client
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Command, Link
from bus.topics.registry import GroupSpec
from bus.values import Message

GROUP = "stock"


class World:
    """One partition with ten messages, of which a slice has handled eight in every possible way."""

    turns: Turns | None = None

    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self.bus = Bus(server.url, prefix=prefix)
        self.bus.topic("orders")
        self.bus.registry.project(self.bus.declared.specs().values())
        self.bus.registry.declare_groups([GroupSpec(topic="orders", name=GROUP)])
        self.keys = self.bus.keys.partition("orders", 0)
        self.ids = [self.bus.publish("orders", n, key=key).id for n, key in enumerate("aabbccddee")]
        self.take_over("one:1")

    def close(self) -> None:
        self._end_turns()
        self.bus.close()

    def _end_turns(self) -> None:
        if self.turns is not None and (link := self.turns.close()) is not None:
            link.close()

    def take_over(self, lease: str) -> None:
        self.bus.client.call("SET", self.keys.lease(GROUP, "0"), lease)
        self._end_turns()
        self.lane = Lane(LaneState(LaneId("orders", 0, GROUP), lease, "key"), self.keys)
        self.turns = Turns(self.bus.endpoint, [self.lane], held_limit=100, dead_limit=100)
        self.turns.open()

    def take(self, count: int = 100) -> list[Message]:
        """The next messages; the first turns of a new owner look for left-overs."""
        for _ in range(3):
            if messages := [message for _, found in self.turns.take(count) for message in found]:
                return messages
        return []

    def handle(self, messages: list[Message]) -> None:
        """a: done, done. b: retry, held. c: dead, done. d: done, done."""
        lane = self.lane
        outcomes = ("done", "done", "retry", "held", "dead", "done", "done", "done")
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome == "done":
                lane.done(message)
            elif outcome == "retry":
                lane.retry(message, 60, "no", 1)
            elif outcome == "held":
                lane.hold(message)
            else:
                lane.dead(message, "never", "never", 1)

    def places(self) -> dict[str, list[str]]:
        """Message id → every place in which it is; a message that is nowhere is settled."""
        client, keys = self.bus.client, self.keys
        found: dict[str, list[str]] = {message_id: [] for message_id in self.ids}
        for row in client.call("XPENDING", keys.stream, GROUP, "-", "+", 100):
            found[row[0].decode()].append("pending")
        for _, fields in client.call("XRANGE", keys.dead(GROUP), "-", "+"):
            found[commands.fields_of(fields)["id"].decode()].append("dead")
        info = client.call("XINFO", "GROUPS", keys.stream)[0]
        position = commands.fields_of(info)["last-delivered-id"]
        for entry in client.call("XRANGE", keys.stream, b"(" + position, "+"):
            found[entry[0].decode()].append("to be delivered")
        return found

    def waiting(self) -> list[str]:
        client, keys = self.bus.client, self.keys
        held = client.call("ZRANGE", keys.held(GROUP), 0, -1)
        retry = client.call("ZRANGE", keys.retry(GROUP), 0, -1)
        return [unpad_id(each.decode().split(":")[1]) for each in held] + [each.decode() for each in retry]


def commands_of_a_turn(server: EmbeddedServer, prefix: str) -> int:
    world = World(server, f"{prefix}c")
    world.handle(world.take(8))
    asked = question.question(
        [world.lane], fetch_from=[world.lane], count=8, now=0, held_limit=100, dead_limit=100
    )
    size = len(question.commands(asked))
    world.close()
    return size


def cut_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The server gets only the first commands of the next write; then the connection is gone."""
    real = question.commands

    def fewer(asked: Asked) -> list[Command]:
        return real(asked)[:number]

    def send_and_die(self: Link, packed: bytes, replies: int) -> None:
        real_send(self, packed, replies)
        for _ in range(replies):
            self.receive()
        self.close()
        raise ReplyLost("cut")

    real_send = Link.send
    monkeypatch.setattr(question, "commands", fewer)
    monkeypatch.setattr(Link, "send", send_and_die)


@pytest.mark.both_servers
def test_a_crash_after_any_command_of_a_turn_leaves_each_message_in_one_place(
    server: EmbeddedServer, prefix: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_scripts_once(World(server, f"{prefix}w"))  # a NOSCRIPT would hide the command that is cut after
    size = commands_of_a_turn(server, prefix)
    assert size >= 7
    for number in range(size + 1):
        # Given a slice whose connection, and life, ends after so many commands of its turn
        world = World(server, f"{prefix}{number}")
        world.handle(world.take(8))
        with monkeypatch.context() as patch:
            cut_after(patch, number)
            with pytest.raises(ReplyLost):
                world.turns.take(8)
        # Then every message is in exactly one place, or was done and is settled
        done = {world.ids[n] for n in (0, 1, 5, 6, 7)}
        for message_id, places in world.places().items():
            assert len(places) == 1 or (not places and message_id in done), (number, message_id, places)
        assert set(world.waiting()) <= set(world.ids[2:4])
        # And whoever takes over finishes the rest
        world.take_over("two:1")
        finish(world)
        left = {message_id: places for message_id, places in world.places().items() if places}
        assert set(left) <= {world.ids[2], world.ids[3], world.ids[4]}, number
        world.close()


def run_scripts_once(world: World) -> None:
    world.handle(world.take(8))
    world.turns.take(8)
    world.close()


def finish(world: World) -> None:
    """Another slice: what it is given, it does."""
    for _ in range(10):
        for message in world.take():
            if world.lane.must_wait(message):
                world.lane.hold(message)
            else:
                world.lane.done(message)
    world.turns.settle()
