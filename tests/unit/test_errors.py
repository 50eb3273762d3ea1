"""The tree of errors: one base, and what each can be caught as."""

from __future__ import annotations

import inspect
import re

import pytest

from bus import errors
from bus.errors import BusError, Reject, Retry, ServerError, UnknownGroup, UnknownTopic
from bus.streams.connect import error_of

ALL = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and each.__module__ == "bus.errors"
}


def test_everything_but_the_two_for_handlers_is_a_bus_error():
    others = {name for name, each in ALL.items() if not issubclass(each, BusError)}
    assert others == {"Retry", "Reject"}


def test_the_tree_in_the_docstring_names_every_error():
    assert errors.__doc__ is not None
    assert set(re.findall(r"[A-Z][A-Za-z]+", errors.__doc__)) >= set(ALL)


def test_every_error_says_when_it_is_raised():
    assert all(each.__doc__ for each in ALL.values())


@pytest.mark.parametrize(
    ("name", "builtin"),
    [("UnknownTopic", LookupError), ("InvalidMessage", ValueError), ("ConfigurationError", ValueError),
     ("BusUnavailable", ConnectionError), ("PublishUncertain", ConnectionError), ("BusFull", MemoryError),
     ("Forbidden", ConnectionError),
     ("ReadOnly", PermissionError)],
)  # fmt: skip
def test_who_does_not_know_the_bus_can_catch_the_builtin(name, builtin):
    assert issubclass(ALL[name], builtin)


def test_an_uncertain_publish_is_not_taken_for_one_that_did_not_happen():
    assert not issubclass(ALL["PublishUncertain"], ALL["BusUnavailable"])


def test_an_unknown_topic_says_how_to_make_it():
    error = UnknownTopic("ordres")
    assert error.topic == "ordres"
    assert "'ordres'" in str(error)
    assert "bus topic create" in str(error)


def test_an_unknown_group_knows_its_topic():
    error = UnknownGroup("orders", "inventory")
    assert (error.topic, error.group) == ("orders", "inventory")


def test_a_handler_may_ask_for_a_retry_with_or_without_a_delay():
    assert Retry().delay is None
    assert str(Retry())
    assert Retry("later", delay=10).delay == 10
    assert Reject("no such product").reason == "no such product"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "BusFull"),
        ("READONLY You can't write against a read only replica.", "BusUnavailable"),
        ("LOADING Redis is loading the dataset in memory", "BusUnavailable"),
        ("MISCONF Errors writing to the AOF file", "BusUnavailable"),
        ("NOAUTH Authentication required.", "BusUnavailable"),
        ("NOPERM User x has no permissions to run the 'info' command", "Forbidden"),
        ("ERR The user executing the script can't run this command or subcommand", "Forbidden"),
        ("ERR ACL failure in script: No permissions to access a key script", "Forbidden"),
        ("ERR The user executing the script can't access at least one of the keys", "Forbidden"),
        ("MOVED 3999 127.0.0.1:6381", "ConfigurationError"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "ForeignData"),
        ("ERR The stream has exhausted the last possible ID, unable to add more items", "PartitionFull"),
        ("ERR something else", "ServerError"),
    ],
)
def test_an_error_reply_becomes_the_error_of_the_bus_that_says_what_happened(text, name):
    assert type(error_of(ServerError(text))) is ALL[name]
    assert text.split(" ", 1)[0] in str(error_of(ServerError(text)))
