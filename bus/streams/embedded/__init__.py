"""The server that pip brings: Valkey on a unix socket, with its data in a directory of the project.

`ensure` starts one server that outlives its starter and that every process of this directory
shares; `EmbeddedServer` is a server of one's own, which ends with its owner (demo, tests, benchmarks).
Whichever way it was started, at most one server runs on a directory: the server process itself
holds the lock `server.hold` for as long as it lives.
"""

from bus.streams.embedded.owned import EmbeddedServer
from bus.streams.embedded.shared import ServerStatus, ensure, running_socket, status, stop
from bus.streams.embedded.site import socket_path

__all__ = ["EmbeddedServer", "ServerStatus", "ensure", "running_socket", "socket_path", "status", "stop"]
