"""Waiting for a condition: no test sleeps for a fixed time and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SELDOM = 0.2


def wait_until(
    condition: Callable[[], T], timeout: float = 60, what: str = "the condition", interval: float = 0.02
) -> T:
    """The first true value of `condition`; AssertionError with its last value after `timeout` seconds.

    `interval`: seconds between two looks. After a second they become fewer, down to a tenth, but at least one
    each `SELDOM` seconds: several tests wait at a time, and looking takes from what they wait for.
    """
    begun = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - begun
        if waited > timeout:
            raise AssertionError(f"Waited {timeout:g} s for {what}; last value: {value!r}")
        time.sleep(max(interval, min(interval * waited, interval * 10, SELDOM)))
    return value
