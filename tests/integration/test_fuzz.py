"""Junk in every key that can be named, beside healthy neighbours: it harms nothing but what it belongs to.

`FUZZ_EXAMPLES=1000` tries that many kinds at random; without it a fixed few are tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.test import Client
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from bus import doctor
from bus.cli.audited import Audited
from bus.client import Bus
from bus.format.keys import TYPES, Keys
from bus.streams.embedded import EmbeddedServer
from tests.integration import strange
from tests.integration.strange import GROUPS, SICK, WELL, World
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
#: Seconds that the key may be so before it is removed again.
PATIENCE = 30

Mangle = Callable[[bytes], bytes]
"""What somebody else makes of a real value."""

JSON = [b"{}", b"[]", b"null", b"1e999", b'"x"', b"{", b'{"": {}}', b"[" * 2000, b'{"a": 1, "a": 2}',
        b"\xef\xbb\xbf{}", b'{"beat": "x", "groups": 5, "processes": -1}', b'{"partitions": 1e9}',
        b'{"k": "", "a": -1}']  # fmt: skip
NUMBERS = [b"0", b"-1", b"1e308", b"nan", b"inf", b"9" * 30, b"0x10", b"1_000", "١٢٣".encode(), b"9" * 5000]
IDS = [b"0-0", b"1-1", b"5", b"5-", b"-5", b"007-01", b"18446744073709551615-18446744073709551615",
       b"18446744073709551616-0", b"1764294000000000-0"]  # fmt: skip

values: st.SearchStrategy[Mangle] = st.one_of(
    st.sampled_from([*JSON, *NUMBERS, *IDS, b"", b"\x00", b"\xff" * 300]).map(lambda raw: lambda _real: raw),
    st.binary(max_size=40).map(lambda raw: lambda _real: raw),
    st.integers(0, 60).map(lambda size: lambda real: real[:size]),
    st.tuples(st.integers(0, 500), st.integers(0, 7)).map(lambda at: lambda real: flipped(real, *at)),
    st.binary(min_size=1, max_size=8).map(lambda more: lambda real: real + more),
    st.sampled_from([b'{"newer": [1], ', b'{"newer": null, ']).map(
        lambda start: lambda real: start + real[1:] if real[:2] == b'{"' else start
    ),
)
scores = st.sampled_from(["-inf", "inf", "0", "1e300", "-5", "0.5", str(2**53)])
ids = st.sampled_from(["*", "18446744073709551615-5", "1764294000000000-0", f"{2**64 - 1}-{2**64 - 1}"])
names = st.one_of(
    st.sampled_from([b"era", b"suspect:0", b"dead", b"trimmed", b"layout", b"last", b"5-5", b"5\xff", b"",
                     b"sick", b"sick/keyed", b"well/stray", b"v", b"k", b"h", b"g", b"id", b"attempts"]),
    st.binary(max_size=20),
)  # fmt: skip


def flipped(real: bytes, place: int, bit: int) -> bytes:
    if not real:
        return b"\xff"
    at = place % len(real)
    return real[:at] + bytes([real[at] ^ 1 << bit]) + real[at + 1 :]


@dataclass(frozen=True)
class Junk:
    """What is written into one key."""

    name: str
    """Of the key, in bus.keys."""
    group: str
    other_type: str | None
    """The key is replaced by one of this type; None: it gets more of its own."""
    field: bytes
    """A field, or a member, if there is none yet."""
    mangle: Mangle
    score: str
    id: str

    def __repr__(self) -> str:
        return f"<{self.name} of {self.group}: {self.other_type}, {self.field!r}, {self.score}, {self.id}>"


junk = st.builds(
    Junk,
    name=st.sampled_from(sorted(TYPES)),
    group=st.sampled_from(sorted(GROUPS)),
    other_type=st.one_of(st.none(), st.none(), st.sampled_from(["string", "list", "hash", "zset", "stream"])),
    field=names,
    mangle=values,
    score=scores,
    id=ids,
)


def write(bus: Bus, key: str, each: Junk) -> None:
    """Write it, by hand, as somebody who does not know better."""
    call, kind = bus.client.call, TYPES[each.name]
    if each.other_type not in (None, kind):
        call("DEL", key)
        kind = str(each.other_type)
    if kind == "string":
        call("SET", key, each.mangle(call("GET", key) or b"x"))
    elif kind == "list":
        call("RPUSH", key, each.mangle(b"x"))
    elif kind == "hash":
        known = call("HGETALL", key)
        name, real = (known[0], known[1]) if known and each.field[:1] < b"\x80" else (each.field, b"{}")
        call("HSET", key, name, each.mangle(real))
    elif kind == "zset":
        known = call("ZRANGE", key, 0, 0)
        call("ZADD", key, each.score, each.mangle(known[0] if known else b"1-1"))
    else:
        known = call("XREVRANGE", key, "+", "-", "COUNT", 1)
        fields = known[0][1] if known else [b"v", b"1"]
        bus.client.pipe([("XADD", key, each.id, each.field or b"x", each.mangle(fields[1]), *fields[2:])])


@pytest.fixture
def world(
    server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    with strange.consumed(server, prefix, settings, monkeypatch) as world:
        yield world


@settings(
    max_examples=EXAMPLES or 40, deadline=None, derandomize=not EXAMPLES, print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(each=junk)
def test_junk_in_any_key_harms_nothing_but_what_it_belongs_to(
    world: World, admin_client: Client, capsys: pytest.CaptureFixture[str], each: Junk
) -> None:
    event(f"{each.name} {'of another type' if each.other_type else 'with junk in it'}")
    bus, key = world.bus, strange.every_key(world.bus, SICK, 0, each.group)[each.name]
    before = {name: bus.client.call("HGETALL", name) for name in (bus.keys.topics, bus.keys.groups)}
    write(bus, key, each)
    note(f"{key} holds {look_at(bus, key)}")

    # The neighbours go on, with messages that fail at first too: the other topic, and the other partition of
    # this topic, unless the key is of the whole bus
    healthy = [*strange.places(WELL), *([] if hasattr(Keys, each.name) else [(SICK, 1)])]
    world.assert_all_go_on(healthy, PATIENCE, {}, {"fail": 1})
    # and everything may be looked at
    for topic in (SICK, WELL):
        strange.assert_pages_answer(admin_client, topic, each.group)
    strange.assert_commands_answer(bus, Audited, SICK, each.group)
    capsys.readouterr()

    # When it is removed all is as before.
    bus.client.call("DEL", key)
    for name, fields in before.items():
        bus.client.call("DEL", name)
        bus.client.call("HSET", name, *fields)
    bus.registry.forget_cache()
    world.assert_goes_on(SICK, PATIENCE)
    world.assert_goes_on(SICK, PATIENCE, fail=1)
    wait_until(lambda: not wrong(bus), PATIENCE, "doctor to find nothing wrong")


def wrong(bus: Bus) -> list[str]:
    """What doctor finds, but for the server itself (Redis 7.0 would have something to say)."""
    own = ("partitions", "foreign", "delayed", "layout")
    return [each.text for each in doctor.examine(bus) if each.level != "ok" and each.check in own]


def look_at(bus: Bus, key: str) -> object:
    kind = bus.client.call("TYPE", key)
    asked: dict[bytes, tuple[Any, ...]] = {
        b"string": ("GET", key), b"hash": ("HGETALL", key), b"zset": ("ZRANGE", key, 0, 5, "WITHSCORES"),
        b"list": ("LRANGE", key, 0, 5), b"stream": ("XREVRANGE", key, "+", "-", "COUNT", 2),
    }  # fmt: skip
    return kind, bus.client.call(*asked[kind]) if kind in asked else None
