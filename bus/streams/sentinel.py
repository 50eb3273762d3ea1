"""Asks sentinels, one after another, which server is the master now."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bus.errors import BusError, BusUnavailable, ServerError
from bus.streams.url import Address
from bus.streams.wire import Link

#: Flags of a master that its sentinel takes for dead.
_GONE = frozenset(("s_down", "o_down", "disconnected"))


def master_of(address: Address, connect: Callable[[str, int], Link]) -> tuple[str, int]:
    """Return host and port of the master, as the first sentinel that knows it says. Raises BusUnavailable.

    `connect` opens a connection to one sentinel, by host and port.
    """
    answers = []
    for host, port in address.hosts:
        try:
            return _ask(connect(host, port), address.master)
        except BusError as error:
            answers.append(f"{host}:{port}: {error}")
    raise BusUnavailable(
        f"No sentinel of {address.masked} knows the master {address.master!r} ({'; '.join(answers)})"
    )


def _ask(link: Link, name: str) -> tuple[str, int]:
    try:
        reply = link.call("SENTINEL", "MASTER", name)
    finally:
        link.close()
    if isinstance(reply, ServerError):
        raise BusUnavailable(str(reply))
    fields = _fields(reply)
    flags = set(fields.get("flags", "").split(","))
    if "master" not in flags or flags & _GONE or not fields.get("port", "").isdigit():
        raise BusUnavailable(f"it is {fields.get('flags') or 'unknown'} there")
    return fields.get("ip", ""), int(fields["port"])


def _fields(reply: object) -> Mapping[str, str]:
    if not isinstance(reply, list):
        raise BusUnavailable("its answer cannot be read")
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in reply]
    return dict(zip(texts[::2], texts[1::2], strict=False))
