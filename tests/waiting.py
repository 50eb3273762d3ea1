"""Waiting for a condition: no test sleeps for a fixed time and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], timeout: float = 60, what: str = "the condition", interval: float = 0.02
) -> T:
    """The first true value of `condition`; AssertionError with its last value after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {timeout:g} s for {what}; last value: {value!r}")
        time.sleep(interval)
    return value
