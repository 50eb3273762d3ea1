"""The server's INFO: which server it is, and what its figures can be trusted with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bus.observe.snapshots import ServerSnapshot
from bus.streams.connect import check, is_forbidden

#: From these versions on the server also keeps `entries-read` over AOF replay and on replicas.
_LAG_IS_KEPT = {"Redis": (7, 4), "Valkey": (8, 0)}


@dataclass(frozen=True, slots=True)
class Info:
    """The reply to INFO."""

    fields: dict[str, str]
    refusal: str = ""
    """The server's answer where the user may not INFO: then nothing is known."""

    @classmethod
    def of(cls, reply: Any) -> Info:
        """Read a reply to INFO. A refusal by ACL is kept; any other error is raised."""
        return cls({}, refusal=str(reply)) if is_forbidden(reply) else cls.parse(check(reply))

    @classmethod
    def parse(cls, reply: bytes) -> Info:
        """Read the `name:value` lines; the `# Section` lines are dropped."""
        pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
        return cls({name: value for name, colon, value in pairs if colon})

    @property
    def kind(self) -> str:
        """ "Redis" or "Valkey"; Valkey reports a `redis_version` too, which says nothing."""
        valkey = self.fields.get("server_name") == "valkey" or "valkey_version" in self.fields
        return "Valkey" if valkey else "Redis"

    @property
    def version(self) -> str:
        """ "9.1.2"; "unknown" if the server does not say."""
        return self.fields.get(f"{self.kind.lower()}_version", "unknown")

    @property
    def release(self) -> tuple[int, int]:
        """(major, minor); (0, 0) if the server does not say."""
        parts = [*self.version.split("."), "0"]
        return (int(parts[0]), int(parts[1])) if parts[0].isdigit() and parts[1].isdigit() else (0, 0)

    @property
    def keeps_lag(self) -> bool:
        """Return whether the server's own lag outlives a restart and a failover."""
        return self.release >= _LAG_IS_KEPT[self.kind]

    def number(self, name: str) -> int:
        """Return a field that is a whole number; 0 if it is missing: managed servers leave some out."""
        return int(self.fields.get(name) or 0)

    def snapshot(self, url: str) -> ServerSnapshot:
        if self.refusal:
            return ServerSnapshot(
                url=url, kind="", version="", used_memory=None, max_memory=None, uptime=None,
                refusal=self.refusal,
            )  # fmt: skip
        return ServerSnapshot(
            url=url,
            kind=self.kind,
            version=self.version,
            used_memory=self.number("used_memory"),
            max_memory=self.number("maxmemory"),
            uptime=timedelta(seconds=self.number("uptime_in_seconds")),
        )
