"""A private PostgreSQL from the distribution's package: on a unix socket, without fsync."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests import ending
from tests.servers import unavailable
from tests.waiting import wait_until

#: Debian keeps the programs of each version apart, not on the PATH.
_DEBIAN = Path("/usr/lib/postgresql")


class Postgres:
    """A running cluster."""

    def __init__(self, directory: Path, user: str) -> None:
        self.directory = directory
        self.user = user

    def url(self, name: str) -> str:
        """Of a database, as JITNEY_DATABASE takes it."""
        return f"postgresql://{self.user}@{quote(str(self.directory), safe='')}/{name}"

    def connect(self, name: str = "postgres") -> Any:
        """A connection in autocommit mode."""
        import psycopg

        return psycopg.connect(host=str(self.directory), user=self.user, dbname=name, autocommit=True)

    def create(self, name: str, template: str = "template1") -> None:
        """Make a database, as a copy of another that nobody uses now."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


def programs() -> Path:
    """The directory of PostgreSQL's programs, else `unavailable`."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = [path.parent for path in _DEBIAN.glob("*/bin/initdb")]
    if not versions:
        unavailable("PostgreSQL (initdb)")
    return max(versions, key=lambda path: float(path.parent.name))


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start a cluster, and end it."""
    binaries = programs()
    # A short path, as sockets need, that the other user may enter: PostgreSQL refuses to run as root.
    directory = Path(tempfile.mkdtemp(prefix="jitney-pg-"))
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
        other = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data, log = directory / "data", directory / "log"
    common: dict[str, Any] = {"cwd": directory, "stdin": subprocess.DEVNULL, **other}
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "jitney", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        check=True, stdout=subprocess.DEVNULL, timeout=120, **common,
    )  # fmt: skip
    options = {
        "listen_addresses": "", "unix_socket_directories": str(directory), "fsync": "off",
        "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "32MB",
    }  # fmt: skip
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ending.with_tests([binaries / "postgres", "-D", data, *settings], signal.SIGQUIT),
            stdout=output, stderr=output, **common,
        )  # fmt: skip
    server = Postgres(directory, "jitney")
    try:
        wait_until(lambda: _answers(server) or process.poll() is not None, 90, "PostgreSQL to answer", 0.05)
        assert process.poll() is None, log.read_text(errors="replace")
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _answers(server: Postgres) -> bool:
    import psycopg

    try:
        server.connect().close()
    except psycopg.OperationalError:
        return False
    return True
