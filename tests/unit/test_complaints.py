"""Complaints: each cause at once, then rarely, with a count of what was kept back."""

from __future__ import annotations

import logging

import pytest

from bus.safety.complaints import MAX_CAUSES, Complaints

LOGGER = logging.getLogger("jitney.test_complaints")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def complaints(clock: Clock) -> Complaints:
    return Complaints(LOGGER, seconds=60, clock=clock)


def test_a_cause_is_said_at_once_and_then_once_a_minute_with_the_count_of_the_rest(
    complaints: Complaints, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(4):
        complaints.say("disk", "The disk %s is full.", "sda")
    clock.now += 60
    complaints.say("disk", "The disk %s is full.", "sda")

    assert caplog.messages == [
        "The disk sda is full.",
        "The disk sda is full. (3 more like this since the last line)",
    ]


def test_one_cause_does_not_hide_another(complaints: Complaints, caplog: pytest.LogCaptureFixture) -> None:
    assert complaints.say("a", "a")
    assert complaints.say("b", "b")

    assert caplog.messages == ["a", "b"]


def test_a_cause_that_was_over_is_said_at_once_again(
    complaints: Complaints, caplog: pytest.LogCaptureFixture
) -> None:
    complaints.say("a", "a")
    complaints.over("a")
    complaints.say("a", "a")

    assert caplog.messages == ["a", "a"]


def test_the_number_of_causes_that_are_remembered_is_bounded(complaints: Complaints) -> None:
    for number in range(MAX_CAUSES + 1):
        complaints.say(number, "x")

    assert complaints.say(0, "the oldest was forgotten")
    assert not complaints.say(MAX_CAUSES, "the newest was not")


def test_what_a_line_tells_of_is_counted_not_the_lines(
    complaints: Complaints, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        complaints.say("disk", "500 files lost.", of=500)
    clock.now += 60
    complaints.say("disk", "500 files lost.", of=500)

    assert caplog.messages[1] == "500 files lost. (1,000 more like this since the last line)"
