"""Names the history of a server's data, which is another after a restart or a failover.

After a failover, a restart or a switch of the roles another process answers, or the same one with other data.
What was learnt of the one is not true of the other, even if single values (a lease, a position) are equal.
"""

from __future__ import annotations

import hashlib

from bus.errors import ServerError
from bus.streams.wire import Link


def ask(link: Link) -> int:
    """Return a number of 63 bits that stands for one process of a server in one of its lives as a master.

    0 if the server does not say, for example to a user who may not ask. Raises BusUnavailable.
    """
    reply = link.call("INFO", "server", "replication")
    if isinstance(reply, ServerError):
        return 0
    facts = dict(line.partition(b":")[::2] for line in reply.splitlines())
    run, life = facts.get(b"run_id"), facts.get(b"master_replid", b"")
    if not run:
        return 0
    digest = hashlib.sha1(run + b" " + life, usedforsecurity=False).digest()
    return int.from_bytes(digest[:8]) >> 1 or 1
