"""The table of handlers, and the errors of a wrong `subscribe`."""

from __future__ import annotations

import pytest

from bus.errors import ConfigurationError
from bus.subscriptions import MAX_BATCH, Subscription, Subscriptions
from bus.values import RetryPolicy


def handle(message):
    """A handler."""


def handle_too(message):
    """Another one."""


async def handle_async(message):
    """One that is asynchronous."""


def subscription(**options) -> Subscription:
    return Subscription(**{"topic": "orders", "group": "inventory", "handler": handle, **options})


def test_a_handler_is_found_by_topic_and_group():
    table = Subscriptions()
    table.add(subscription())
    found = table.get("orders", "inventory")
    assert found is not None
    assert found.handler is handle
    assert table.get("orders", "ledger") is None
    assert table.get("alerts", "inventory") is None


def test_the_table_is_in_the_order_of_topic_and_group():
    table = Subscriptions()
    for topic, group in [("b", "x"), ("a", "z"), ("a", "y")]:
        table.add(subscription(topic=topic, group=group))
    assert [(each.topic, each.group) for each in table] == [("a", "y"), ("a", "z"), ("b", "x")]
    assert len(table) == 3
    table.clear()
    assert len(table) == 0


def test_a_module_that_is_imported_twice_may_subscribe_twice():
    table = Subscriptions()
    table.add(subscription())
    table.add(subscription(batch=5))
    found = table.get("orders", "inventory")
    assert found is not None
    assert found.batch == 5


def test_a_second_handler_for_a_group_is_an_error_that_names_both():
    table = Subscriptions()
    table.add(subscription())
    with pytest.raises(
        ConfigurationError, match=r"already has the handler .*\.handle; .*\.handle_too needs a group"
    ):
        table.add(subscription(handler=handle_too))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"topic": "or ders"}, "Topic 'or ders' is not a valid name"),
        ({"group": ""}, "Group '' is not a valid name"),
        ({"ordering": "keys"}, "ordering must be one of key, partition, none, not 'keys'"),
        ({"batch": 0}, "batch must be from 1 to 10,000"),
        ({"batch": MAX_BATCH + 1}, "batch must be from 1 to 10,000"),
        ({"batch": True}, "batch must be from 1 to 10,000"),
        ({"batch": "5"}, "batch must be from 1 to 10,000"),
        ({"batch": 2.5}, "batch must be from 1 to 10,000"),
        ({"retry": 3}, "retry must be a bus.RetryPolicy, not 3"),
        ({"time_limit": 0}, "time_limit must be more than 0 seconds"),
        ({"time_limit": "5"}, "time_limit must be more than 0 seconds"),
        ({"soft_time_limit": -1}, "soft_time_limit must be more than 0 seconds"),
        ({"handler": "handle"}, "'handle' is not callable"),
        ({"atomic": True}, "atomic must be True or the alias of a database"),
        ({"atomic": "default", "handler": handle_async}, "an async handler cannot be atomic"),
        ({"start": "newest"}, "'newest' is not a position"),
    ],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_a_wrong_option_is_an_error_that_says_what(options, why):
    table = Subscriptions()
    with pytest.raises(ConfigurationError, match=why):
        table.add(subscription(**options))
    assert len(table) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ordering": "none", "batch": MAX_BATCH, "time_limit": 0.5, "soft_time_limit": 10},
        {"handler": handle_async},
        {"start": "latest"},
        {"start": "2030-01-31T12:00+01:00"},
        {"retry": RetryPolicy(attempts=1)},
    ],
    ids="-".join,
)
def test_right_options_are_taken(options):
    table = Subscriptions()
    table.add(subscription(**options))
    assert len(table) == 1
