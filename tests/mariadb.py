"""A private MariaDB from the distribution's package: on a unix socket, without fsync."""

from __future__ import annotations

import getpass
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymysql

from tests import ending
from tests.servers import program
from tests.waiting import wait_until

#: Debian keeps servers off the PATH of users.
_SBIN = "/usr/sbin"


class MariaDB:
    """A running server."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "socket")

    def url(self, name: str) -> str:
        """Of a database, as JITNEY_DATABASE takes it."""
        return f"mariadb://root@{quote(self.socket, safe='')}/{name}"

    def connect(self, name: str | None = None) -> Any:
        """A connection in autocommit mode."""
        return pymysql.connect(
            unix_socket=self.socket, user="root", database=name, autocommit=True, charset="utf8mb4"
        )

    def create(self, name: str, template: str | None = None) -> None:
        """Make a database, with the tables of another and what is in them (foreign keys stay behind)."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
            if template is None:
                return
            cursor.execute(f"SHOW TABLES FROM `{template}`")
            for (table,) in cursor.fetchall():
                cursor.execute(f"CREATE TABLE `{name}`.`{table}` LIKE `{template}`.`{table}`")
                cursor.execute(f"INSERT INTO `{name}`.`{table}` SELECT * FROM `{template}`.`{table}`")


@contextmanager
def mariadb_server() -> Iterator[MariaDB]:
    """Start a server, and end it."""
    install = program("MariaDB (mariadb-install-db)", "mariadb-install-db")
    server = shutil.which("mariadbd") or shutil.which("mariadbd", path=_SBIN)
    directory = Path(tempfile.mkdtemp(prefix="jitney-my-"))  # a short path, as sockets need
    data, log = directory / "data", directory / "log"
    common = ["--no-defaults", f"--datadir={data}", f"--user={getpass.getuser()}"]
    subprocess.run(
        [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    options = [
        f"--socket={directory / 'socket'}", "--skip-networking", "--skip-log-bin",
        "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M",
        "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            ending.with_tests([server or "mariadbd", *common, *options]),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    running = MariaDB(directory)
    try:
        wait_until(lambda: _answers(running) or process.poll() is not None, 90, "MariaDB to answer", 0.05)
        assert process.poll() is None, log.read_text(errors="replace")
        yield running
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _answers(server: MariaDB) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:  # pymysql leaves a socket open that could not connect
        try:
            probe.connect(server.socket)
        except OSError:
            return False
    try:
        server.connect().close()
    except pymysql.err.OperationalError:
        return False
    return True
