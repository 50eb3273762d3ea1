"""The link and the client: replies in step, errors as values, nothing sent twice, safe across forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.errors import BusFull, BusUnavailable, ReplyLost, ServerError
from bus.streams.connect import Client, Endpoint
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Link
from tests.proxy import Proxy
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def link(client: Client) -> Iterator[Link]:
    link = client.borrow()
    yield link
    client.give_back(link)


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy) -> Iterator[Client]:
    """A client whose server is behind the proxy."""
    client = Client(Endpoint(proxy.url, timeout=20))
    yield client
    client.close()


# ---------------------------------------------------------------------- replies


@pytest.mark.both_servers
def test_replies_come_in_the_order_of_the_commands(link, prefix):
    commands = [("RPUSH", prefix, number) for number in range(1000)]
    assert link.pipe(commands) == list(range(1, 1001))
    assert link.call("LRANGE", prefix, 0, 2) == [b"0", b"1", b"2"]
    assert link.pending == 0


def test_arguments_may_be_text_bytes_and_numbers(link, prefix):
    link.call("RPUSH", prefix, "köln", b"\x00\r\n\xff", 7, -1.5)
    assert link.call("LRANGE", prefix, 0, -1) == ["köln".encode(), b"\x00\r\n\xff", b"7", b"-1.5"]


def test_a_large_value_comes_back_whole(link, prefix):
    value = os.urandom(3 << 20)
    link.call("SET", prefix, value)
    assert link.call("GET", prefix) == value


@pytest.mark.both_servers
def test_an_error_among_many_replies_is_a_value_and_the_link_stays_in_step(link, prefix):
    replies = link.pipe([("SET", prefix, "x"), ("XLEN", prefix), ("GET", prefix)])
    assert isinstance(replies[1], ServerError)
    assert replies[1].code == "WRONGTYPE"
    assert (replies[0], replies[2]) == (b"OK", b"x")
    assert link.call("GET", prefix) == b"x"


def test_an_error_within_a_transaction_is_a_value_too(link, prefix):
    link.call("SET", prefix, "x")
    replies = link.pipe([("MULTI",), ("XLEN", prefix), ("GET", prefix), ("EXEC",)])
    assert isinstance(replies[3][0], ServerError)
    assert replies[3][1] == b"x"
    assert link.call("GET", prefix) == b"x"


def test_no_value_is_none_and_not_false(link, prefix):
    assert link.call("GET", prefix) is None
    assert link.call("XADD", prefix, "NOMKSTREAM", "*", "v", "1") is None
    assert link.call("EXISTS", prefix) == 0


def test_the_error_of_a_single_call_is_raised_as_the_error_of_the_bus(client, prefix):
    client.call("SET", prefix, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        client.call("XLEN", prefix)
    client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(BusFull, match="maxmemory"):
            client.call("SET", prefix, "y")
    finally:
        client.call("CONFIG", "SET", "maxmemory", 0)


# ---------------------------------------------------------------------- trouble


@pytest.mark.parametrize("loses", ["requests", "replies"])
def test_a_lost_reply_is_an_error_that_leaves_open_what_happened_and_nothing_is_sent_again(
    proxy, proxied, client, prefix, loses
):
    # Given a connection that breaks in the middle of a write
    proxied.call("PING")
    proxy.loses = loses
    # When something is written
    with pytest.raises(ReplyLost):
        proxied.call("INCR", prefix)
    # Then it has happened at most once, and the client did not try again
    assert client.call("GET", prefix) == (b"1" if loses == "replies" else None)
    assert proxy.dropped == 1
    # And the next call makes a new connection
    proxy.loses = "nothing"
    assert proxied.call("PING") == b"PONG"


def test_a_link_that_broke_stays_closed(proxy, proxied):
    link = proxied.borrow()
    proxy.loses = "replies"
    with pytest.raises(ReplyLost):
        link.call("PING")
    assert link.closed
    with pytest.raises(BusUnavailable, match="closed"):
        link.call("PING")
    proxied.give_back(link)


def test_where_no_server_is_nothing_was_written(tmp_path):
    client = Client(Endpoint(f"unix://{tmp_path}/nobody.sock"))
    with pytest.raises(BusUnavailable) as caught:
        client.call("PING")
    assert not isinstance(caught.value, ReplyLost)


def test_a_server_that_does_not_answer_is_given_up_after_the_timeout(own_server):
    client = Client(Endpoint(own_server.url, timeout=0.3))
    client.call("PING")
    own_server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(ReplyLost, match="did not answer in time"):
            client.call("PING")
        assert 0.25 < time.monotonic() - began < 10
    finally:
        own_server.thaw()
    assert wait_until(lambda: client.call("PING"), what="the server") == b"PONG"
    client.close()


def test_an_idle_connection_that_the_server_has_closed_is_replaced_without_an_error(client):
    # Given an idle connection that the server closes
    link = client.borrow()
    own = link.call("CLIENT", "ID")
    client.give_back(link)
    other = client.endpoint.connect()
    assert other.call("CLIENT", "KILL", "ID", own) == 1
    other.close()
    wait_until(link.stale, what="the connection to be seen as closed")
    # Then the next call does not fail
    assert client.call("CLIENT", "ID") != own


# ---------------------------------------------------------------------- sharing


def test_a_link_that_is_out_of_step_is_not_used_again(client):
    link = client.borrow()
    link.send(b"*1\r\n$4\r\nPING\r\n", 1)
    client.give_back(link)
    assert link.closed
    assert client.call("ECHO", "mine") == b"mine"


def test_threads_do_not_get_each_others_replies(client):
    wrong: list[object] = []

    def work(name: str) -> None:
        for number in range(300):
            reply = client.call("ECHO", f"{name}-{number}")
            if reply != f"{name}-{number}".encode():
                wrong.append(reply)

    threads = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


#: Parent and child use the same client after a fork; each must get its own replies.
FORKED = """
import os, sys
from bus.streams.connect import Client, Endpoint
client = Client(Endpoint(sys.argv[1]))
client.call("PING")
child = os.fork()
name = b"child" if child == 0 else b"parent"
texts = [b"%s-%d" % (name, number) for number in range(2000)]
ok = all(client.call("ECHO", text) == text for text in texts)
if child == 0:
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0, "the child got wrong replies"
assert ok, "the parent got wrong replies"
assert client.call("PING") == b"PONG"
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_makes_connections_of_its_own(server):
    found = subprocess.run(
        [sys.executable, "-c", FORKED, server.url], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
