"""The web server of the demo: `python -m demo.web FD`, started by the runner.

The runner has bound the socket, so no other process can take the port between finding it free and using
it, and a web server that is started again is at the same address.
"""

from __future__ import annotations

import socket
import sys

import uvicorn


def main() -> None:
    """Serve the project on the listening socket that was inherited under this number."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        "config.asgi:application", lifespan="off", access_log=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
