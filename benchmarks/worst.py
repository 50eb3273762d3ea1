"""What is as bad as we could think of, for every script; `benchmarks.scripts` times it.

Messages of 1 MiB behind small ones, from which no script can tell what comes next; hundreds of groups on one
topic, hundreds of lanes and workers; lists that are cut to a small part of what they were; junk of strangers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import orjson

from benchmarks.slowlog import BASE, GROUP, LARGE, LEASE, VALUE, Bench, id_of
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.outcomes import Outcomes
from bus.consuming.turn import Turns
from bus.errors import BusError
from bus.format.keys import PartitionKeys, pad_id
from bus.format.lane_id import LaneId
from bus.operating import fates, groups
from bus.operating.deadletters import Origin
from bus.operating.fates import LetterRef
from bus.streams import commands
from bus.streams.wire import Argument
from bus.topics import reordering
from bus.topics.registry import GroupSpec
from bus.upkeep import due, losses, retention
from bus.values import TopicSpec

#: Large messages, or what is as many as there are of something that a scene makes one by one.
MANY_LARGE, MANY_GROUPS, MANY_LANES, MANY_WORKERS = 400, 200, 500, 500


def _mixed(bench: Bench, keys: PartitionKeys) -> int:
    """A thousand small messages, then large ones; how many."""
    large = bench.few(MANY_LARGE)
    bench.fill(keys, 1000)
    for n in range(1000, 1000 + large):
        bench.client.call("XADD", keys.stream, id_of(n), "v", LARGE)
    return 1000 + large


def large_after_small(bench: Bench) -> None:
    name, keys = bench.topic(groups=False)
    count = _mixed(bench, keys)
    for n, start in enumerate((0, 790, 900, 995)):  # wherever pages begin and end
        with bench.watched("`group create`, large messages come after small ones"):
            groups.create(bench.bus, name, f"g{n}", start=id_of(start))
    spec, names = TopicSpec(name=name), [f"g{n}" for n in range(4)]
    with bench.watched("losses are looked for, large messages come after small ones"):
        commands.run_many(bench.client, "lost", [losses.call(bench.bus, spec, 0, names, "*")])
    bench.client.call("XGROUP", "SETID", keys.stream, "g0", id_of(count - 1))
    retained = TopicSpec(name=name, retention=timedelta(milliseconds=1))
    for each in names:
        bench.client.call("XGROUP", "SETID", keys.stream, each, id_of(count - 1))
    with bench.watched("large messages are trimmed"):
        retention.trim(bench.bus, retained)
    assert bench.client.call("XLEN", keys.stream) < 2


def many_groups(bench: Bench) -> None:
    name, keys = bench.topic(groups=False)
    count = bench.few(MANY_GROUPS)
    specs = [GroupSpec(topic=name, name=f"g{n}", ordering="key") for n in range(count)]
    with bench.watched(f"{count} groups are made"):
        bench.bus.registry.declare_groups(specs)
    bench.fill(keys, 10_000)
    for n, spec in enumerate(specs):
        bench.client.call("XGROUP", "SETID", keys.stream, spec.name, id_of(n), "ENTRIESREAD", n)
        bench.client.call("SET", keys.mark(spec.name), id_of(n))
    names = [spec.name for spec in specs]
    with bench.watched(f"losses of {count} groups are looked for"):
        commands.run_many(bench.client, "lost", [losses.call(bench.bus, TopicSpec(name=name), 0, names, "*")])
    with bench.watched(f"trimming beside {count} groups"):
        retention.trim(bench.bus, TopicSpec(name=name, retention=timedelta(days=10)))
    own = [keys.lease("g0", "0"), keys.stream, keys.state("g0"), keys.retry("g0"), keys.held("g0")]
    with bench.watched(f"a lane is taken beside {count} groups"):
        commands.run(bench.client, "lease", own, ["", LEASE, "g0", "0", "1", "key"])
    with bench.watched(f"a look at what is open, beside {count} groups"):
        about: list[Argument] = ["g0", "-", "+", 500]
        commands.run(bench.client, "unsettled", [keys.stream, keys.state("g0"), keys.dead("g0")], about)
    for each in names:
        bench.client.call("XGROUP", "DESTROY", keys.stream, each)
    with bench.watched(f"{count} lost groups are made again"):
        bench.bus.registry.restore_partition(name, 0)
    bench.client.call("DEL", keys.stream)
    with bench.watched(f"a lost stream is made again, with {count} groups"):
        bench.bus.registry.restore_partition(name, 0)


def batches_fail(bench: Bench) -> None:
    """All that one batch of 500 can become, at once."""
    _, keys = bench.topic()
    bench.fill(keys, 30_000)
    bench.give(keys, 30_000)
    bench.lease(keys)
    state = orjson.dumps({"k": "h", "a": 1, "e": "x" * 4000}).decode()
    bench.fail(keys, range(500))
    bench.hold(keys, range(1000, 30_000), 500)
    with bench.watched("500 heads are done, each lets its key go"):
        bench.turn(keys, done=[id_of(n) for n in range(500)], release=[f"{n:016x}" for n in range(500)])
    bench.fail(keys, range(500, 1000))
    with bench.watched("500 retries were trimmed"):
        bench.turn(keys, trimmed=[id_of(n) for n in range(500, 1000)])
    ids = [id_of(n) for n in range(20_000, 20_500)]
    with bench.watched("500 attempts are noted"):
        bench.turn(keys, noted=[(id, state) for id in ids])
    with bench.watched("100 dead, 100 retries, 100 held, 100 done, 100 let go"):
        bench.turn(
            keys,
            dead=[(id, "x", "x" * 4000, 5, BASE) for id in ids[:100]],
            retry=[(id, 0, state) for id in ids[100:200]],
            held=[(id, pad_id(id), "h") for id in ids[200:300]],
            done=ids[300:400],
            release=[f"{n:016x}" for n in range(100)],
        )
    # A key with 10,000 that wait, and one with as many that are none of ours
    bench.client.call("DEL", keys.held(GROUP), keys.retry(GROUP), keys.state(GROUP))
    bench.hold(keys, range(1000, 11_000), 1)
    with bench.watched("one key is released, 10,000 messages"):
        bench.turn(keys, release=["0" * 16])
    junk = f"{1:016x}:"
    bench.pipe(("ZADD", keys.held(GROUP), 0, f"{junk}junk{n}") for n in range(10_000))
    with bench.watched("one key is released, junk"):
        bench.turn(keys, release=[f"{1:016x}"])
    bench.pipe(("ZADD", keys.held(GROUP), 1 + n, f"{n:016x}:junk") for n in range(10_000))
    with bench.watched("one message is done, junk is held"):
        bench.turn(keys, done=[id_of(25_000)])


def dead_letters(bench: Bench) -> None:
    """A long list is cut to a small limit, and read and given back where letters are large."""
    name, keys = bench.topic()
    bench.fill(keys, 1000)
    bench.give(keys, 1000)
    bench.lease(keys)
    fields = ("id", "reason", "x", "error", "x" * 1000, "attempts", 5, "first", 1, "last", 1, "v", VALUE)
    bench.pipe(
        ("XADD", keys.dead(GROUP), f"{n + 1}-0", fields[0], id_of(n), *fields[1:])
        for n in range(bench.waiting)
    )
    own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    own += [keys.dead(GROUP), keys.mark(GROUP)]
    one = Outcomes(dead=[(id_of(1), "x", "x", 5, BASE)]).dump()
    with bench.watched(f"a list of {bench.waiting:,} dead letters gets a limit of 100"):
        commands.run(bench.client, "turn", own, [LEASE, GROUP, "0", 0, 100, one, ""])
    with bench.watched("dead letters are looked through for ids"):
        commands.run(bench.client, "letters", [keys.dead(GROUP)], ["0-0", 100, 256 * 1024])
    bench.client.call("DEL", keys.dead(GROUP))
    large = bench.few(MANY_LARGE)
    for n in range(large):
        bench.client.call("XADD", keys.dead(GROUP), f"{n + 1}-0", "id", id_of(n), "v", LARGE)
    one = Outcomes(dead=[(id_of(2), "x", "x", 5, BASE)]).dump()
    with bench.watched("dead letters of 1 MiB are looked through for ids"):
        commands.run(bench.client, "letters", [keys.dead(GROUP)], ["0-0", 100, 256 * 1024])
    bench.client.call("XGROUP", "DESTROY", keys.stream, GROUP)
    letters = [LetterRef(Origin(0, f"{n + 1}-0"), "", "") for n in range(min(100, large))]
    with bench.watched("dead letters of 1 MiB whose group is gone are retried"):
        fates.retry(bench.bus, name, GROUP, letters)
    with bench.watched("a list of large dead letters gets a limit of 1"):
        bench.bus.registry.restore_partition(name, 0)
        bench.give(keys, 1000)
        commands.run(bench.client, "turn", own, [LEASE, GROUP, "0", 0, 1, one, ""])


def many_lanes(bench: Bench) -> None:
    """Hundreds of lanes of one unordered group in one partition, all with something pending."""
    name, keys = bench.topic(ordering="none")
    count = bench.few(MANY_LANES)
    bench.fill(keys, 20 * count)
    lanes = [f"w{n}.0" for n in range(count)]
    for lane in lanes:
        bench.give(keys, 20, lane)
        bench.lease(keys, lane)
    bench.fail(keys, range(20 * count), score=1 << 52)
    leases = [keys.lease(GROUP, lane) for lane in lanes]
    own = [keys.stream, keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP), keys.dead(GROUP), *leases]
    for n in range(100):
        fields = ("id", f"{n + 1}-0", "reason", "x", "attempts", 5, "v", VALUE)
        bench.client.call("XADD", keys.dead(GROUP), f"{n + 1}-0", *fields)
    letters = [f"{n + 1}-0" for n in range(100)]
    with bench.watched(f"100 dead letters are retried beside {count} lanes"):
        about: list[Argument] = [GROUP, "none", f"free:{uuid.uuid4().hex}", count, *lanes, *letters]
        commands.run(bench.client, "redrive", own, about)
    bench.lease(keys, lanes[0])
    with bench.watched(f"a lane of {count} is not removed"):
        commands.run(bench.client, "retire", [keys.stream, leases[0]], [LEASE, GROUP, lanes[0]])
    bench.client.call("DEL", keys.retry(GROUP), keys.state(GROUP), keys.dead(GROUP))
    at = "-"
    while page := bench.client.call("XPENDING", keys.stream, GROUP, at, "+", 1000):
        bench.client.call("XACK", keys.stream, GROUP, *[row[0] for row in page])
        at = b"(" + page[-1][0]
    with bench.watched(f"an ordering is changed that had {count} lanes"):
        [change] = reordering.change(bench.bus, [(reordering.GroupPartition(name, GROUP, 0), "none", "key")])
    assert change.waiting == 0
    for lane in lanes:
        bench.client.call("XGROUP", "CREATECONSUMER", keys.stream, GROUP, lane)
    bench.lease(keys)
    own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    with bench.watched(f"left-overs of an ordering that had {count} lanes"):
        commands.run(bench.client, "recover", own, [LEASE, GROUP, "0", "-", 500, "key"])


def claimed(bench: Bench) -> None:
    """Retries of an unordered group, and left-overs that another ordering left under other names."""
    _, keys = bench.topic(ordering="none")
    bench.fill(keys, 2000)
    bench.give(keys, 2000, "other")
    bench.lease(keys)
    bench.fail(keys, range(1000))
    own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.state(GROUP)]
    with bench.watched("due retries are claimed"):
        commands.run(bench.client, "due", own, [LEASE, GROUP, "0", 500, "1"])
    own.insert(3, keys.held(GROUP))
    bench.hold(keys, range(1000, 2000))
    with bench.watched("left-overs come from another lane"):
        commands.run(bench.client, "recover", own, [LEASE, GROUP, "0", "-", 500, "key"])
    bench.pipe(("ZADD", keys.retry(GROUP), 0, f"junk{n}") for n in range(10_000))
    own.pop(3)
    with bench.watched("junk is due"):
        commands.run(bench.client, "due", own, [LEASE, GROUP, "0", 500, "1"])


def strangers(bench: Bench) -> None:
    """A stranger has written as many fields into our hashes as there are messages that wait."""
    name, keys = bench.topic()
    bench.fill(keys, 1000)
    bench.give(keys, 1000)
    bench.lease(keys)
    junk = "x" * 100
    bench.pipe(("HSET", keys.state(GROUP), f"junk{n}", junk) for n in range(bench.waiting))
    lane = Lane(LaneState(LaneId(name, 0, GROUP), LEASE, "key"), keys)
    turns = Turns(bench.bus.endpoint, [lane], held_limit=10_000, dead_limit=10_000)
    with bench.watched("a slice begins, junk in the state"):
        turns.open()
    if link := turns.close():
        link.close()
    bench.client.call("XGROUP", "DESTROY", keys.stream, GROUP)
    with bench.watched("a lost group is made again, junk in the state"):
        bench.bus.registry.restore_partition(name, 0)
    bench.client.call("DEL", keys.stream, keys.state(GROUP))
    bench.bus.registry.restore_partition(name, 0)
    bench.client.call("XADD", keys.stream, f"{10**15}-0", "v", "1")
    bench.pipe(("HSET", keys.ahead, f"junk{n}", junk) for n in range(bench.waiting))
    with bench.watched("trimming, junk beside ids that are ahead of the clock"):
        retention.trim(bench.bus, TopicSpec(name=name, retention=timedelta(days=1)))
    bench.pipe(("ZADD", keys.delayed, 1, f"junk{n}") for n in range(1000))
    bench.pipe(("HSET", keys.delayed_body, f"{n:016d}", "0:,1:v,1:1,") for n in range(1000))
    with bench.watched("junk waits among delayed messages"), suppress(BusError):  # it says so
        due.Mover(bench.bus).run()


def written(bench: Bench) -> None:
    """What everybody writes all the time."""
    name, keys = bench.topic()
    with bench.watched("a large message with a message_id"):
        bench.bus.publish(name, LARGE[: 1 << 19], message_id="one")
    with bench.watched("a large delayed message with a message_id"):
        bench.bus.publish(name, LARGE[: 1 << 19], delay=60, message_id="two")
    count = bench.few(MANY_WORKERS)
    record = orjson.dumps(
        {"host": "x" * 50, "pid": 1, "groups": ["g"] * 100, "beat": 1, "declined": [junk_lane()] * 20}
    )
    bench.pipe(("HSET", bench.bus.keys.workers, f"w{n}", record) for n in range(count))
    with bench.watched(f"a beat beside {count} workers"):
        commands.run(bench.client, "beat", [bench.bus.keys.workers], ["w0", record])
    with bench.watched("a declaration and a hint"):
        commands.run(bench.client, "declare", [bench.bus.keys.groups], ["x/y", "{}", ""])
        commands.run(bench.client, "hint", [bench.bus.keys.control], ["pause"])
    bench.client.call("XADD", keys.stream, "*", "v", LARGE)
    own = [keys.lease(GROUP, "0"), keys.stream, keys.state(GROUP), keys.retry(GROUP), keys.held(GROUP)]
    with bench.watched("a lane is taken, its last message is large"):
        commands.run(bench.client, "lease", own, ["", LEASE, GROUP, "0", "1", "key"])


def junk_lane() -> list[str | int]:
    return ["a-topic-with-a-long-name", 12, "a-group", "0"]


SCENES: tuple[Callable[[Bench], None], ...] = (
    large_after_small, many_groups, batches_fail, dead_letters, many_lanes, claimed, strangers, written,
)  # fmt: skip
