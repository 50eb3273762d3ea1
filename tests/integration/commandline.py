"""Runs commands of the command line in the process of the test."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from bus.cli import tree
from bus.cli.session import Session
from bus.client import Bus


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


class Run:
    """Runs a command with its arguments. `operator`: the verbs that it has, Audited or Direct."""

    def __init__(self, bus: Bus, operator: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.operator = operator
        self._bus = bus
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        code = tree.run(Session(lambda: self._bus, self.operator), arguments, "bus")
        return Result(code, *self._capsys.readouterr())
