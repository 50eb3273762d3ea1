"""The benchmark of scripts has all of them: one that is not in it could hold the server for long, unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import pytest

from benchmarks.scripts import SCENES
from benchmarks.slowlog import Bench
from bus.streams.commands import Script, script
from bus.streams.embedded import EmbeddedServer


def test_every_script_is_in_the_benchmark_of_scripts_and_every_scene_of_it_runs(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a note of which scripts are sent
    sent: set[str] = set()

    def noting(sound: Callable[..., Any]) -> Callable[..., Any]:
        def send(self: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
            sent.add(self.sha)
            return sound(self, keys, args)

        return send

    for method in ("by_sha", "by_text"):
        monkeypatch.setattr(Script, method, noting(getattr(Script, method)))
    # When all scenes are played, with little
    for scene in SCENES:
        bench = Bench(own_server, entries=2_500, waiting=600)
        scene(bench)
        bench.client.call("FLUSHALL")
        bench.bus.close()
    # Then none was left out
    folder = files("bus.streams").joinpath("scripts")
    names = [path.name.removesuffix(".lua") for path in folder.iterdir() if path.is_file()]
    assert len(names) > 20
    assert [name for name in names if script(name).sha not in sent] == []
