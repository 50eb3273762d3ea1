"""Checks whether messages are safe on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bus.client import Bus
from bus.doctor.finding import Finding
from bus.errors import ServerError
from bus.format.display import size_of
from bus.format.records import layout_of
from bus.observe.info import Info
from bus.safety.unreadable import Unreadable
from bus.streams.commands import fields_of, text
from bus.streams.wire import Command
from bus.topics.registry import LAYOUT

#: The oldest supported version of each kind.
_OLDEST = {"Redis": (7, 0), "Valkey": (8, 0)}

#: Share of maxmemory from which on it is time to do something.
_NEARLY_FULL = 0.8


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says of itself."""

    info: Info
    config: dict[str, str] | None
    """None: CONFIG is forbidden, as managed servers do."""
    layout: int | Unreadable | None

    @property
    def readable(self) -> bool:
        """Return whether the keys can be read and understood."""
        newer = isinstance(self.layout, int) and self.layout > LAYOUT
        return self.field("cluster_enabled") != "1" and not newer

    def field(self, name: str) -> str | None:
        return self.info.fields.get(name)

    def setting(self, name: str) -> str | None:
        return None if self.config is None else self.config.get(name)


def ask(bus: Bus) -> Server:
    """Ask the server, in one round trip. Raises BusUnavailable."""
    commands: list[Command] = [
        ("INFO",),
        ("CONFIG", "GET", "append*"),
        ("CONFIG", "GET", "save"),
        ("HGET", bus.keys.meta, "layout"),
    ]
    info, *configs, layout = bus.client.pipe(commands)
    config: dict[str, str] | None = {}
    for reply in configs:
        if isinstance(reply, ServerError):
            config = None
        elif config is not None:
            config |= {name: text(value) for name, value in fields_of(reply).items()}
    facts = Info.of(info)
    # A cluster answers MOVED; it is refused by a check of its own.
    if facts.fields.get("cluster_enabled") == "1":
        return Server(facts, config, None)
    return Server(facts, config, layout_of(bus.keys.meta, layout))


def _version(server: Server) -> Iterator[Finding]:
    info = server.info
    name, oldest = f"{info.kind} {info.version}", _OLDEST[info.kind]
    if info.release == (0, 0):
        yield Finding("warning", "version", "The server does not say which version it is.")
    elif info.release < oldest:
        hint = "Use Redis 7.0 or newer, or Valkey 8 or newer."
        yield Finding("error", "version", f"{name} is too old.", hint)
    elif not info.keeps_lag:
        yield Finding(
            "warning",
            "version",
            f"{name} forgets how far groups have read when it restarts or fails over, so lag is counted "
            'here: that costs more, and a great lag shows as "at least".',
            "Redis 7.4 or newer and Valkey 8 or newer keep it.",
        )
    else:
        yield Finding("ok", "version", f"{name} is supported.")


def _eviction(server: Server) -> Iterator[Finding]:
    policy = server.field("maxmemory_policy")
    hint = "Set maxmemory-policy noeviction: a full server then refuses new messages and keeps the old ones."
    if policy is None:
        yield Finding("warning", "eviction", "The server does not say what it evicts.", hint)
    elif policy == "noeviction":
        yield Finding("ok", "eviction", "maxmemory-policy is noeviction.")
    elif policy.startswith("allkeys"):
        told = "when memory is full, whole partitions go, with their groups and messages."
        yield Finding("error", "eviction", f"maxmemory-policy is {policy}: {told}", hint)
    else:
        told = "when memory is full, what keeps publishes from being stored twice can go."
        yield Finding("warning", "eviction", f"maxmemory-policy is {policy}: {told}", hint)


def _memory(server: Server) -> Iterator[Finding]:
    used, most = server.info.number("used_memory"), server.info.number("maxmemory")
    hint = "Raise maxmemory or shorten the retention of large topics."
    if not most:
        yield Finding("ok", "memory", f"{_bytes(used)} used; no limit (maxmemory is 0).")
        return
    told = f"{_bytes(used)} of {_bytes(most)} used ({used / most:.0%})."
    if used >= most:
        yield Finding("error", "memory", f"{told} Publishing is refused.", hint)
    elif used >= _NEARLY_FULL * most:
        yield Finding("warning", "memory", f"{told} Publishing is refused when it is full.", hint)
    else:
        yield Finding("ok", "memory", told)


def _persistence(server: Server) -> Iterator[Finding]:
    hint = "Set appendonly yes (appendfsync everysec, or always where not one message may be lost)."
    if server.field("aof_enabled") == "1":
        yield _append_only(server.setting("appendfsync"))
    elif server.field("aof_enabled") is None:
        yield Finding("warning", "persistence", "The server does not say whether it keeps a file.", hint)
    elif (save := server.setting("save")) is None:
        told = (
            "There is no append-only file, and whether there are snapshots is unknown (CONFIG is forbidden)."
        )
        yield Finding("warning", "persistence", f"{told} If not, a restart loses everything.", hint)
    elif save:
        told = (
            f"Snapshots only (save {save}): a crash loses every message and acknowledgement since the last."
        )
        yield Finding("warning", "persistence", told, hint)
    else:
        told = "Nothing is kept: a restart or crash of the server loses all messages, groups and positions."
        yield Finding("warning", "persistence", told, hint)


def _append_only(fsync: str | None) -> Finding:
    if fsync == "always":
        return Finding("ok", "persistence", "Append-only file, appendfsync always: no crash loses a message.")
    if fsync == "everysec":
        told = "a crash of the server loses nothing, a loss of power about the last second."
        return Finding("ok", "persistence", f"Append-only file, appendfsync everysec: {told}")
    hint = "Set appendfsync everysec, or always where not one message may be lost."
    if fsync is None:
        told = "Append-only file; how often it is forced to disk is unknown (CONFIG is forbidden)."
        return Finding("warning", "persistence", told, hint)
    told = "a loss of power loses all that the system had not written yet, often half a minute."
    return Finding("warning", "persistence", f"Append-only file, appendfsync {fsync}: {told}", hint)


def _last_writes(server: Server) -> Iterator[Finding]:
    statuses = {
        "aof_last_write_status": "The last write to the append-only file",
        "aof_last_bgrewrite_status": "The last rewrite of the append-only file",
        "rdb_last_bgsave_status": "The last snapshot",
    }
    failed = [what for name, what in statuses.items() if server.field(name) not in (None, "ok")]
    for what in failed:
        hint = "Look into the server's log; mostly its disk is full or may not be written to."
        yield Finding("error", "disk", f"{what} failed. What is published now may not survive.", hint)
    if not failed:
        yield Finding("ok", "disk", "The last writes to disk went well.")


def _role(server: Server) -> Iterator[Finding]:
    role = server.field("role")
    if role == "master":
        yield Finding("ok", "role", "The server is a master.")
    else:
        hint = "Use the URL of the master, or redis+sentinel://… which finds it."
        yield Finding("error", "role", f"The server's role is {role or 'unknown'}: it takes no writes.", hint)


def _cluster(server: Server) -> Iterator[Finding]:
    if server.field("cluster_enabled") == "1":
        hint = "Use a single server, with replicas and sentinels for failover."
        yield Finding("error", "cluster", "The server is part of a cluster, not supported yet.", hint)
    else:
        yield Finding("ok", "cluster", "The server is not part of a cluster.")


def _layout(server: Server) -> Iterator[Finding]:
    if server.layout is None:
        yield Finding("ok", "layout", "Nothing has been stored under this prefix yet.")
    elif isinstance(server.layout, Unreadable):
        hint = f"Set it to {LAYOUT} (HSET … layout {LAYOUT}), unless a newer Jitney runs on these keys."
        yield Finding("warning", "layout", f"The layout of the keys cannot be read: {server.layout}.", hint)
    elif server.layout > LAYOUT:
        told = f"The keys have layout {server.layout}; this Jitney knows up to {LAYOUT}."
        yield Finding("error", "layout", told, "Upgrade Jitney here, or use another BUS['PREFIX'].")
    else:
        yield Finding("ok", "layout", f"The keys have layout {server.layout}.")


def _bytes(count: float) -> str:
    return " ".join(size_of(count))


def findings(server: Server) -> Iterator[Finding]:
    """Yield what all checks find."""
    if server.info.refusal:
        hint = "Allow this user INFO, or look with another one."
        told = f"Unknown, since this user may not INFO ({server.info.refusal})."
        for name in ("version", "eviction", "memory", "persistence", "disk", "role", "cluster"):
            yield Finding("warning", name, told, hint)
        yield from _layout(server)
        return
    for check_one in CHECKS:
        yield from check_one(server)


#: Every check, in the order in which they are shown.
CHECKS: tuple[Callable[[Server], Iterator[Finding]], ...] = (
    _version, _eviction, _memory, _persistence, _last_writes, _role, _cluster, _layout,
)  # fmt: skip
