"""What the doctor says of a server, from the server's own words."""

from __future__ import annotations

import pytest

from bus.doctor import Finding
from bus.doctor.server import CHECKS, Server
from bus.observe.info import Info

GOOD_INFO = {
    "server_name": "valkey",
    "valkey_version": "9.1.2",
    "role": "master",
    "cluster_enabled": "0",
    "used_memory": "1048576",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
}
GOOD_CONFIG = {"appendfsync": "everysec", "save": ""}


def findings(
    config: dict[str, str] | None = GOOD_CONFIG, layout: int | None = 1, **info: str | None
) -> list[Finding]:
    """What is found where a good server differs by `info` (None: it does not say) and `config`."""
    fields = {name: value for name, value in (GOOD_INFO | info).items() if value is not None}
    server = Server(Info(fields), config, layout)
    return [finding for check in CHECKS for finding in check(server)]


def the(check: str, found: list[Finding]) -> Finding:
    (finding,) = [finding for finding in found if finding.check == check]
    return finding


def test_a_good_server_has_no_findings_but_good_ones() -> None:
    found = findings()
    assert {finding.level for finding in found} == {"ok"}
    assert len({finding.check for finding in found}) == len(found) == len(CHECKS)
    assert not any(finding.hint for finding in found)


@pytest.mark.parametrize("server", [{"server_name": None, "valkey_version": None, "redis_version": "7.0.15"}])
def test_redis_before_7_4_is_a_warning_that_lag_is_counted(server: dict[str, str | None]) -> None:
    finding = the("version", findings(**server))
    assert finding.level == "warning"
    assert "lag is counted" in finding.text


@pytest.mark.parametrize(
    ("server", "level"),
    [
        ({"valkey_version": "8.0.1"}, "ok"),
        ({"valkey_version": "7.2.5"}, "error"),
        ({"valkey_version": None, "server_name": None, "redis_version": "6.2.14"}, "error"),
        ({"valkey_version": None, "server_name": None, "redis_version": "7.4.0"}, "ok"),
        ({"valkey_version": None, "server_name": None}, "warning"),
    ],
)
def test_versions_are_judged_by_the_kind_of_server(server: dict[str, str | None], level: str) -> None:
    assert the("version", findings(**server)).level == level


@pytest.mark.parametrize(
    ("policy", "level"),
    [
        ("noeviction", "ok"),
        ("volatile-lru", "warning"),
        ("volatile-ttl", "warning"),
        ("allkeys-lru", "error"),
        ("allkeys-random", "error"),
        (None, "warning"),
    ],
)
def test_a_server_that_evicts_is_not_safe(policy: str | None, level: str) -> None:
    finding = the("eviction", findings(maxmemory_policy=policy))
    assert finding.level == level
    assert ("noeviction" in finding.hint) == (level != "ok")


@pytest.mark.parametrize(
    ("used", "level", "text"),
    [("500", "ok", "50%"), ("799", "ok", "80%"), ("800", "warning", "80%"), ("1000", "error", "100%")],
)
def test_memory_that_runs_out_is_told_before_and_when_it_happens(used: str, level: str, text: str) -> None:
    finding = the("memory", findings(used_memory=used, maxmemory="1000"))
    assert finding.level == level
    assert text in finding.text


def test_memory_is_shown_in_binary_units() -> None:
    assert "1.0 MiB used" in the("memory", findings()).text
    assert "3.0 TiB used" in the("memory", findings(used_memory=str(3 << 40))).text


@pytest.mark.parametrize(
    ("aof", "config", "level", "text"),
    [
        ("1", {"appendfsync": "always", "save": ""}, "ok", "no crash loses"),
        ("1", {"appendfsync": "everysec", "save": ""}, "ok", "about the last second"),
        ("1", {"appendfsync": "no", "save": ""}, "warning", "loss of power"),
        ("1", None, "warning", "unknown"),
        ("0", {"save": "3600 1"}, "warning", "since the last"),
        ("0", {"save": ""}, "warning", "loses all messages"),
        ("0", None, "warning", "unknown"),
        (None, None, "warning", "does not say"),
    ],
)
def test_persistence_says_what_a_crash_would_lose(
    aof: str | None, config: dict[str, str] | None, level: str, text: str
) -> None:
    finding = the("persistence", findings(config, aof_enabled=aof))
    assert finding.level == level
    assert text in finding.text


@pytest.mark.parametrize(
    "status", ["aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"]
)
def test_a_failed_write_to_disk_is_an_error(status: str) -> None:
    assert the("disk", findings(**{status: "err"})).level == "error"
    assert the("disk", findings(**{status: None})).level == "ok"


def test_a_replica_a_cluster_and_a_newer_layout_are_errors() -> None:
    assert the("role", findings(role="slave")).level == "error"
    assert the("cluster", findings(cluster_enabled="1")).level == "error"
    assert the("layout", findings(layout=999)).level == "error"
    assert the("layout", findings(layout=None)).level == "ok"


def test_every_trouble_comes_with_what_to_do() -> None:
    found = findings(None, 999, maxmemory_policy="allkeys-lru", aof_enabled="0", role="slave",
                     cluster_enabled="1", aof_last_write_status="err", valkey_version="7.2.5",
                     maxmemory="1")  # fmt: skip
    assert all(finding.hint for finding in found if finding.level != "ok")
    assert {finding.check for finding in found if finding.level == "ok"} == set()
