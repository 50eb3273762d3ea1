"""The access rules that docs/security.md gives for each role, and real Redis users that have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bus.client import Bus
from bus.streams.embedded import EmbeddedServer

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/security.md"
PASSWORD = "a-password"


def rules(role: str) -> list[str]:
    """The rules of a role as the document has them, without the name of the user."""
    block = re.search(rf"^```acl-{role}\nuser \S+ (.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert block is not None, role
    # A selector in parentheses is one word.
    return re.findall(r"\([^)]*\)|\S+", re.sub(r"\s+", " ", block[1]))


def user_url(server: EmbeddedServer, name: str, granted: Sequence[str]) -> str:
    """Make a user with these rules; the URL with which to be it."""
    bus = Bus(server.url)
    assert bus.client.call("ACL", "SETUSER", name, "reset", *granted) == b"OK"
    bus.close()
    return server.url.replace("unix://", f"unix://{name}:{PASSWORD}@")


def as_user(server: EmbeddedServer, name: str, granted: Sequence[str], **settings: object) -> Bus:
    return Bus(user_url(server, name, granted), **settings)
