"""One place of an inbox in tests: partition 0 of a topic, as the lane of a group has it."""

from __future__ import annotations

from django.db import connections

from bus.client import Bus
from bus.format import codec
from bus.models import AuditRecord, InboxFloor, InboxOpen, InboxRow
from bus.topics.registry import GroupSpec
from bus.transactions import forgetting, marks
from bus.values import Message, TopicSpec, id_pair

TOPIC, GROUP = "orders", "stock"


def effect(message: Message) -> None:
    """What a handler does in the database. Nothing in it is unique: what is done twice is seen twice."""
    AuditRecord.objects.create(source="cli", verb=message.id)


def effects(id: str) -> int:
    return AuditRecord.objects.filter(verb=id).count()


def rows() -> list[tuple[int, int]]:
    return list(InboxRow.objects.order_by("ms", "seq").values_list("ms", "seq"))


def floors() -> list[tuple[int, int]]:
    return list(InboxFloor.objects.order_by("pk").values_list("ms", "seq"))


def open_ones() -> list[tuple[int, int]]:
    return list(InboxOpen.objects.order_by("ms", "seq").values_list("ms", "seq"))


class Place:
    """Does what a slice and an operator do, step by step."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.keys = bus.keys.partition(TOPIC, 0)
        bus.registry.project([TopicSpec(name=TOPIC)])
        bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])

    @property
    def era(self) -> str:
        return str(self.bus.client.call("HGET", self.keys.state(GROUP), "era").decode())

    def message(self, id: str, *, era: str | None = None) -> Message:
        return Message(TOPIC, 0, id, [b"v", b"1"], codec.decode, 1, None, self.era if era is None else era)

    def deliver(self, count: int = 1) -> list[Message]:
        """Publish messages, and take them."""
        for number in range(count):
            self.bus.publish(TOPIC, number)
        asked = ("GROUP", GROUP, "0", "COUNT", count, "STREAMS", self.keys.stream, ">")
        reply = self.bus.client.call("XREADGROUP", *asked)
        return [self.message(entry[0].decode()) for entry in reply[0][1]]

    def settle(self, *messages: Message) -> None:
        for message in messages:
            self.bus.client.call("XACK", self.keys.stream, GROUP, message.id)
            self.bus.client.call("ZREM", self.keys.retry(GROUP), message.id)
            self.bus.client.call("HDEL", self.keys.state(GROUP), message.id)

    def bury(self, message: Message) -> None:
        """Make a dead letter of it."""
        about = ("id", message.id, "reason", "no", "error", "no", "attempts", 1, "first", 1, "last", 1)
        self.bus.client.call("XADD", self.keys.dead(GROUP), "*", *about, "v", "1")
        self.settle(message)

    def mark(self, id: str) -> None:
        """All is settled up to this id, but for what waits."""
        self.bus.client.call("SET", self.keys.mark(GROUP), id)
        marks.copy(self.bus)

    def last_delivered(self) -> str:
        (raw,) = self.bus.client.call("XINFO", "GROUPS", self.keys.stream)
        named = dict(zip(raw[::2], raw[1::2], strict=True))
        return str(named[b"last-delivered-id"].decode())

    def upkeep(self) -> int:
        """What a worker does every ten seconds."""
        self.mark(self.last_delivered())
        return forgetting.forget(self.bus, "default")

    def pair(self, *messages: Message) -> list[tuple[int, int]]:
        return [id_pair(message.id) for message in messages]


def sqlite_locks_at_begin() -> bool:
    return connections["default"].settings_dict["OPTIONS"].get("transaction_mode") == "IMMEDIATE"
