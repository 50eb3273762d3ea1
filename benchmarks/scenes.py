"""What workers and operators do, where there is as much as there can be; `benchmarks.scripts` times it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import orjson

from benchmarks.slowlog import BASE, GROUP, LARGE, LEASE, VALUE, Bench, id_of
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.format.keys import PartitionKeys, pad_id
from bus.format.lane_id import LaneId
from bus.operating import delayed, fates, groups, positions, targets
from bus.operating.deadletters import Origin
from bus.operating.delayed import DelayedRef
from bus.operating.fates import LetterRef
from bus.streams import commands
from bus.transactions import marks
from bus.upkeep import due, retention
from bus.values import TopicSpec


def group_create(bench: Bench) -> None:
    name, keys = bench.topic(groups=False)
    bench.fill(keys, bench.entries)
    with bench.watched("`group create` in the middle of all messages"):
        groups.create(bench.bus, name, GROUP, start=id_of(bench.entries // 100))


def lost_group(bench: Bench) -> None:
    name, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.give(keys, 2 * bench.waiting)
    bench.fail(keys, range(bench.waiting))
    bench.hold(keys, range(bench.waiting, 2 * bench.waiting))
    bench.client.call("SET", keys.mark(GROUP), id_of(2 * bench.waiting))
    bench.client.call("XGROUP", "DESTROY", keys.stream, GROUP)
    with bench.watched("a lost group made again, with all that waits"):
        bench.bus.registry.restore_partition(name, 0)
    assert bench.client.call("XPENDING", keys.stream, GROUP)[0] == 2 * bench.waiting
    with bench.watched("`group delete`, all of that pending"):
        groups.delete(bench.bus, name, GROUP)


def advanced(bench: Bench) -> None:
    name, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.give(keys, 2 * bench.waiting)
    bench.fail(keys, range(0, bench.waiting, 2))
    with bench.watched("a group moved to its copied mark"):
        place, mark = marks.MarkRef(name, 0, GROUP, ""), id_of(bench.entries - 1000)
        era = bench.client.call("HGET", keys.state(GROUP), "era").decode()
        marks.advance_one(bench.bus, place, mark, era, "key", [keys.lease(GROUP, "0")])
    assert bench.client.call("XPENDING", keys.stream, GROUP)[0] == bench.waiting // 2


def reset(bench: Bench) -> None:
    name, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.give(keys, 2 * bench.waiting)
    bench.fail(keys, range(bench.waiting))
    bench.hold(keys, range(bench.waiting, 2 * bench.waiting))
    with bench.watched("`group reset` to an offset, with all that waits"):
        positions.reset(
            bench.bus, positions.plan(bench.bus, name, GROUP, targets.offset(bench.entries // 100))
        )
    assert bench.client.call("XPENDING", keys.stream, GROUP)[0] == 0


def marked(bench: Bench) -> None:
    name, keys = bench.topic(ordering="none")
    bench.fill(keys, bench.waiting)
    bench.give(keys, bench.waiting)
    bench.fail(keys, range(bench.waiting))
    with bench.watched("the mark of an unordered group, all pending waits"):
        marks.note_unordered(bench.bus, bench.bus.registry.groups(name))


def trimmed(bench: Bench) -> None:
    _, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.client.call("XGROUP", "SETID", keys.stream, GROUP, "$")
    name = keys.due_member.partition(":")[0]
    with bench.watched("all messages are trimmed"):
        retention.trim(bench.bus, TopicSpec(name=name, retention=timedelta(milliseconds=1)))
    assert bench.client.call("XLEN", keys.stream) < 2


def turned(bench: Bench) -> None:
    _, keys = bench.topic()
    bench.fill(keys, 60_000)
    bench.give(keys, 60_000)
    bench.lease(keys)
    ids = [id_of(n) for n in range(500)]
    state = orjson.dumps({"k": "h", "a": 1, "e": "x" * 4000}).decode()
    with bench.watched("500 messages fail"):
        bench.turn(keys, retry=[(id, 0, state) for id in ids])
    with bench.watched("500 are held back"):
        bench.turn(keys, held=[(id, pad_id(id), "h") for id in ids])
    with bench.watched("500 are dead"):
        bench.turn(keys, dead=[(id, "x", "x" * 4000, 5, BASE) for id in ids])
    # As many heads as one turn can settle: due.lua brings no more.
    bench.hold(keys, range(1000, 51_000), 200)
    with bench.watched("200 keys are released, 250 messages each"):
        bench.turn(keys, release=[f"{n:016x}" for n in range(200)])


def recovered(bench: Bench) -> None:
    for value, count, what in ((VALUE, bench.waiting, "200 bytes"), (LARGE, bench.few(200), "1 MiB")):
        _, keys = bench.topic()
        bench.fill(keys, count, value)
        bench.give(keys, count)
        bench.lease(keys)
        own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
        with bench.watched(f"left-overs of {what}"):
            commands.run(bench.client, "recover", own, [LEASE, GROUP, "0", "-", 500, "key"])
        bench.fail(keys, range(count))
        own.remove(keys.held(GROUP))
        with bench.watched(f"due retries of {what}"):
            commands.run(bench.client, "due", own, [LEASE, GROUP, "0", 500, ""])
        bench.client.call("DEL", keys.stream)


def opened(bench: Bench) -> None:
    _, keys = bench.topic()
    count = bench.waiting // 2
    bench.fill(keys, 2 * count)
    bench.give(keys, 2 * count)
    bench.lease(keys)
    bench.fail(keys, range(count))
    bench.hold(keys, range(count, 2 * count))
    name = keys.due_member.partition(":")[0]
    lane = Lane(LaneState(LaneId(name, 0, GROUP), LEASE, "key"), keys)
    turns = Turns(bench.bus.endpoint, [lane], held_limit=10_000, dead_limit=10_000)
    with bench.watched("a slice begins where all that waits"):
        turns.open()
    assert lane.retrying >= count  # keys that are held behind nothing are let go
    if link := turns.close():
        link.close()


def redriven(bench: Bench) -> None:
    for value, what in ((VALUE, "200 bytes"), (LARGE, "1 MiB")):
        for kept in (True, False):
            name, keys = bench.topic()
            count = bench.few(100)
            bench.fill(keys, count, value)
            bench.give(keys, count)
            bench.lease(keys)
            for n in range(count):
                bench.turn(keys, dead=[(id_of(n), "x", "x", 5, BASE)])
            if not kept:
                bench.client.call("XTRIM", keys.stream, "MAXLEN", 0)
            letters = [
                LetterRef(Origin(0, raw.decode()), "", "")
                for raw, _ in bench.client.call("XRANGE", keys.dead(GROUP), "-", "+")
            ]
            with bench.watched(f"{count} dead letters of {what}, {'kept' if kept else 'trimmed'}"):
                outcome = fates.retry(bench.bus, name, GROUP, letters)
            assert len({fate.name for fate in outcome}) == 1
            bench.client.call("DEL", keys.stream, keys.dead(GROUP))


def moved(bench: Bench) -> None:
    for value, count, what in ((VALUE, bench.waiting, "200 bytes"), (LARGE, bench.few(100), "1 MiB")):
        name, keys = bench.topic()

        def wait(value: bytes = value, count: int = count, keys: PartitionKeys = keys) -> None:
            body = b"0:,1:v,%d:%b," % (len(value), value)
            self_paced = (
                command
                for n in range(1, count + 1)
                for command in (
                    ("HSET", keys.delayed_body, f"{n:016d}", body), ("ZADD", keys.delayed, 1, f"{n:016d}")
                )
            )  # fmt: skip
            for command in self_paced:
                bench.client.call(*command) if len(value) > 1000 else bench._later.append(command)
            bench.pipe(bench._later)
            bench._later.clear()

        wait()
        with bench.watched(f"delayed messages of {what} are moved"):
            due.Mover(bench.bus).run()
        bench.client.call("DEL", keys.delayed, keys.delayed_body)
        wait(count=min(count, 1000))
        refs = [DelayedRef(0, n) for n in range(1, min(count, 1000) + 1)]
        with bench.watched(f"delayed messages of {what} are cancelled"):
            delayed.cancel(bench.bus, name, refs)
        bench.client.call("DEL", keys.stream)


def published(bench: Bench) -> None:
    name, keys = bench.topic()
    with bench.watched("500 with message_ids"):
        args = [600, *(part for _ in range(500) for part in (2, "v", VALUE))]
        commands.run(bench.client, "once", [keys.stream, *(keys.once(str(n)) for n in range(500))], args)
    with bench.watched("one delayed"):
        bench.bus.publish(name, 1, delay=60)


def partitioned(bench: Bench) -> None:
    with bench.watched("1,024 partitions with a group"):
        bench.topic(partitions=1024)


SCENES: tuple[Callable[[Bench], None], ...] = (
    group_create, lost_group, advanced, reset, marked, trimmed, turned, recovered, opened, redriven, moved,
    published, partitioned,
)  # fmt: skip
