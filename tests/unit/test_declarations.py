"""Rules of topics, and differences between the three places."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.core.exceptions import ValidationError

from bus.errors import ConfigurationError
from bus.models import Topic
from bus.topics import declared as topics_declared
from bus.topics.declared import Declared
from bus.values import TopicSpec


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Declared:
    """An empty table of what code declares."""
    table = Declared()
    monkeypatch.setattr(topics_declared, "by_code", table)
    return table


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[int, Topic]:
    """Rows by primary key that `clean` finds as the state before a change."""
    rows: dict[int, Topic] = {}
    manager = SimpleNamespace(filter=lambda pk: SimpleNamespace(first=lambda: rows.get(pk)))
    monkeypatch.setattr(Topic, "objects", manager)
    return rows


def errors_of(topic: Topic) -> dict[str, list[str]]:
    try:
        topic.clean()
    except ValidationError as error:
        return error.message_dict
    return {}


@pytest.mark.parametrize("name", ["orders", "a.b_c-1", "x" * 100])
def test_a_good_name_is_accepted(declared: Declared, stored: dict[int, Topic], name: str) -> None:
    assert errors_of(Topic(name=name)) == {}


@pytest.mark.parametrize("name", ["", "two words", "a:b", "{a}", "x" * 101])
def test_a_bad_name_is_refused_with_the_rule(declared: Declared, stored: dict[int, Topic], name: str) -> None:
    assert "letters, digits" in errors_of(Topic(name=name))["name"][0]


@pytest.mark.parametrize(("partitions", "fine"), [(0, False), (1, True), (1024, True), (1025, False)])
def test_a_topic_has_1_to_1024_partitions(
    declared: Declared, stored: dict[int, Topic], partitions: int, fine: bool
) -> None:
    errors = errors_of(Topic(name="orders", partitions=partitions))

    assert ("partitions" not in errors) == fine
    assert fine or "1 to 1,024" in errors["partitions"][0]


def test_retention_of_zero_is_refused(declared: Declared, stored: dict[int, Topic]) -> None:
    errors = errors_of(Topic(name="orders", retention=timedelta(0)))

    assert "longer than zero" in errors["retention"][0]


def test_partitions_cannot_become_fewer_and_a_name_cannot_change(
    declared: Declared, stored: dict[int, Topic]
) -> None:
    stored[1] = Topic(pk=1, name="orders", partitions=8)

    errors = errors_of(Topic(pk=1, name="sales", partitions=4))

    assert "cannot shrink to 4" in errors["partitions"][0]
    assert "cannot be renamed" in errors["name"][0]


def test_of_a_topic_that_code_declares_only_the_notes_can_change(
    declared: Declared, stored: dict[int, Topic]
) -> None:
    declared.add(TopicSpec(name="orders", partitions=8))
    stored[1] = Topic(pk=1, name="orders", partitions=8)

    assert errors_of(Topic(pk=1, name="orders", partitions=8, notes="Ask Ada.")) == {}
    errors = errors_of(Topic(pk=1, name="orders", partitions=16, retention=timedelta(days=1)))

    assert sorted(errors) == ["partitions", "retention"]
    assert "declared in code" in errors["partitions"][0]


def test_notes_can_change_while_the_row_differs_from_code(
    declared: Declared, stored: dict[int, Topic]
) -> None:
    declared.add(TopicSpec(name="orders", partitions=4))
    stored[1] = Topic(pk=1, name="orders", partitions=8)

    assert errors_of(Topic(pk=1, name="orders", partitions=8, notes="Ask Ada.")) == {}


def test_a_topic_that_code_declares_cannot_be_created_by_hand(
    declared: Declared, stored: dict[int, Topic]
) -> None:
    declared.add(TopicSpec(name="orders"))

    assert "declared in code" in errors_of(Topic(name="orders"))["name"][0]


def test_a_row_is_a_spec_and_a_broken_row_is_an_error() -> None:
    assert Topic(name="orders", partitions=3).spec == TopicSpec(name="orders", partitions=3)
    with pytest.raises(ConfigurationError):
        _ = Topic(name="orders", partitions=0).spec
