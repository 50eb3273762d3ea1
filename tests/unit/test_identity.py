"""A predecessor is taken for gone only where that is proven."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workers.membership import identity
from workers.membership.identity import is_proven_gone, this_process

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")


def ended_process() -> int:
    """The id of a process that has ended and was waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_each_start_has_an_incarnation_of_its_own_that_fits_into_a_lease():
    first, second = this_process(), this_process()
    assert first.incarnation != second.incarnation
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", first.incarnation)
    assert str(os.getpid()) in first.incarnation


def test_a_strange_host_name_gives_a_usable_incarnation(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "büro:worker 1/" + "x" * 200)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", this_process().incarnation)


def test_the_record_is_json_with_the_proof_in_it():
    me = this_process()
    record = json.loads(json.dumps(me.to_record()))
    assert record == {
        "host": me.host, "pid": os.getpid(), "boot": me.boot, "pidns": me.pidns, "start": me.start,
        "started": me.started,
    }  # fmt: skip


@needs_proc
def test_on_linux_the_whole_proof_is_known():
    me = this_process()
    assert re.fullmatch(r"[0-9a-f-]{36}", me.boot)
    assert me.pidns.startswith("pid:[")
    assert me.start


@needs_proc
def test_a_process_that_runs_is_not_gone():
    assert not is_proven_gone(this_process().to_record())


@needs_proc
def test_a_process_that_has_ended_is_gone():
    assert is_proven_gone({**this_process().to_record(), "pid": ended_process()})


@needs_proc
def test_an_id_that_another_process_has_now_is_a_process_that_is_gone():
    record = this_process().to_record()
    assert is_proven_gone({**record, "start": record["start"] - 1})


@needs_proc
@pytest.mark.parametrize(
    "unknown",
    [
        {"boot": "11111111-2222-3333-4444-555555555555"},
        {"boot": ""},
        {"pidns": "pid:[1]"},
        {"pidns": None},
        {"start": None},
        {"start": "12"},
        {"pid": 0},
        {"pid": -1},
        {"pid": "17"},
        {"pid": 2**70},
    ],
    ids=str,
)
def test_what_is_unknown_or_elsewhere_proves_nothing(unknown):
    ended = {**this_process().to_record(), "pid": ended_process()}
    assert not is_proven_gone({**ended, **unknown})


def test_an_empty_record_proves_nothing():
    assert not is_proven_gone({})


def test_without_proc_nothing_is_proven(monkeypatch, tmp_path):
    record = {"pid": ended_process(), "start": 1, "boot": "b", "pidns": "pid:[1]"}
    monkeypatch.setattr(identity, "_PROC", tmp_path)
    me = this_process()
    assert (me.boot, me.pidns, me.start) == ("", "", None)
    assert not is_proven_gone(record)
    assert not is_proven_gone(me.to_record())


@pytest.mark.parametrize("comm", ["python", "a b", "evil) S 1 2 3", ")))", "((", "naïve\udcff"])
def test_the_start_is_found_whatever_the_process_is_called(monkeypatch, tmp_path, comm):
    # Given a stat line in which the name holds what it likes
    fields = ["S", *(str(number) for number in range(4, 53))]
    directory = tmp_path / "17"
    directory.mkdir()
    line = f"17 ({comm}) {' '.join(fields)}\n"
    (directory / "stat").write_bytes(line.encode(errors="surrogateescape"))
    monkeypatch.setattr(identity, "_PROC", tmp_path)
    # Then field 22 is the start
    assert identity._start_ticks(17) == 22
