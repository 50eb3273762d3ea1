"""`manage.py demo` as a user runs it: real processes, real signals, and the check at the end."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from bus.streams.embedded import socket_path
from demo.generator import generated_records
from demo.orders import COLUMNS
from tests import ending
from tests.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[2]
REAL_DAY = PROJECT.parent / "shared" / "data" / "online-retail-2010-12-01.csv"

pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc"),
]


class Demo:
    """One run of the demo, with a data directory that marks its processes."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.output_file = data.parent / "output.txt"
        environment = {**os.environ, "JITNEY_DATA": str(data)}
        for name in ("BUS_URL", "BUS_PREFIX", "BUS_GROUPS"):
            environment.pop(name, None)
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                ending.with_tests([sys.executable, "manage.py", "demo", *arguments]),
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def logs(self) -> str:
        """The logs of all children, for the message of a failure."""
        paths = sorted(self.data.glob("demo/*/logs/*.log"))
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)

    def until(self, text: str, timeout: float = 120) -> re.Match[str]:
        """Wait for a pattern in what the demo prints."""

        def look() -> re.Match[str] | None:
            found = re.search(text, self.output)
            if found is None and self.process.poll() is not None:
                raise AssertionError(f"The demo has ended without {text!r}:\n{self.output}{self.logs()}")
            return found

        found = wait_until(look, timeout, what=f"{text!r}")
        assert found
        return found

    def exit_code(self, timeout: float = 300) -> int:
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End the run whatever state the test has left it in."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self, *words: str) -> list[int]:
        """Living processes of this run whose command line has these words, oldest first."""
        found = []
        for path in Path("/proc").iterdir():
            try:
                # Valkey writes its title over its environment, but works in the run's directory.
                ours = f"JITNEY_DATA={self.data}".encode() in (path / "environ").read_bytes()
                ours = ours or os.readlink(path / "cwd").startswith(str(self.data))
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if path.name.isdigit() and ours and command and all(word in command for word in words):
                found.append(int(path.name))
        return sorted(found)

    def worker_tree(self) -> tuple[int, list[int]]:
        """The worker's main process and its pool processes."""
        pids = self.pids("celery", "-A workers worker")
        mains = [pid for pid in pids if _parent(pid) not in pids]
        children = [pid for pid in pids if _parent(pid) in mains]
        return (mains[0] if mains else 0), children

    def server_socket(self) -> Path:
        (run,) = (path for path in (self.data / "demo").iterdir())
        return Path(socket_path(run / "server"))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


Start = Callable[..., Demo]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[Demo] = []

    def starter(*arguments: str) -> Demo:
        runs.append(Demo(tmp_path / f"data-{len(runs)}", *arguments))
        return runs[-1]

    yield starter
    for demo in runs:
        demo.stop()


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """500 order lines with cancellations, returns and some that are malformed, and some that are no lines."""
    path = tmp_path / "some orders.csv"
    lines = (record.value for record in generated_records(5, 1, 1) if record.topic == "orders")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for line in islice(lines, 500):
            writer.writerow([line.get(name, "") for name in COLUMNS])
        writer.writerows([["536365", "too short"], ["x"] * 12, [], ["C1", "A", "", "five", "", "", "", ""]])
    return path


def assert_exact(demo: Demo) -> None:
    code = demo.exit_code()
    assert code == 0, f"{demo.output}{demo.logs()}"
    assert re.search(r"^OK: ", demo.output, re.MULTILINE), demo.output


def assert_nothing_left(demo: Demo) -> None:
    wait_until(lambda: not demo.pids(), what="the end of all processes")
    assert not demo.server_socket().exists()
    assert not list(demo.data.glob("demo/*/running"))


def test_a_file_is_published_handled_and_found_exact_under_a_path_of_90_characters(
    tmp_path: Path, orders: Path
) -> None:
    data = tmp_path / ("d" * max(1, 89 - len(str(tmp_path))))
    assert len(str(data)) >= 90
    demo = Demo(data, "--file", str(orders), "--port", "0")
    try:
        assert_exact(demo)
        assert "admin / " in demo.output
        assert_nothing_left(demo)
    finally:
        demo.stop()


def test_the_real_day_of_orders_is_exact(start: Start) -> None:
    if not REAL_DAY.exists():
        pytest.skip(f"THE REAL DAY OF ORDERS WAS NOT TESTED: {REAL_DAY} is not there")
    demo = start("--file", str(REAL_DAY), "--no-web")

    assert_exact(demo)
    assert "OK: 3,108 order lines" in demo.output


def test_a_run_is_exact_though_a_pool_process_the_worker_and_a_producer_are_killed(start: Start) -> None:
    demo = start("--seconds", "25", "--rate", "150", "--port", "0")
    demo.until(r"handled +[1-9]")

    # when  a pool process, …
    worker, pool = wait_until(lambda: (tree := demo.worker_tree()) and tree[1] and tree, what="a pool")
    os.kill(pool[0], signal.SIGKILL)
    whole = len(pool)
    wait_until(lambda: len(set(demo.worker_tree()[1]) - {pool[0]}) == whole, 60, what="a new pool process")
    # … the worker …
    os.kill(worker, signal.SIGKILL)
    demo.until(rf"worker \(pid {worker}\) was killed by SIGKILL")
    demo.until(r"worker is started again \(pid \d+\)")
    # … and a producer are killed
    (producer,) = demo.pids("demo.producer", "--name producer-1")
    os.kill(producer, signal.SIGKILL)
    demo.until(r"producer-1 is started again")

    assert_exact(demo)
    assert_nothing_left(demo)


def test_a_file_is_exact_though_the_worker_and_the_server_are_killed(start: Start, orders: Path) -> None:
    demo = start("--file", str(orders), "--rate", "60", "--no-web")
    demo.until(r"handled +[1-9]")

    worker, _ = demo.worker_tree()
    os.kill(worker, signal.SIGKILL)
    demo.until(r"worker is started again")
    (server,) = demo.pids("valkey-server")
    os.kill(server, signal.SIGKILL)
    demo.until(r"valkey is started again")

    assert_exact(demo)


def test_a_run_is_exact_though_replies_to_publishes_were_lost(start: Start) -> None:
    demo = start("--seconds", "20", "--rate", "100", "--no-web")
    demo.until(r"handled +[1-9]")
    (server,) = demo.pids("valkey-server")

    # when  the server is frozen for so long that every producer gives a publish up, which it then stores
    os.kill(server, signal.SIGSTOP)
    for log in demo.data.glob("demo/*/logs/producer-*.log"):
        wait_until(lambda log=log: "trying again" in log.read_text(), 60, what=f"a lost reply in {log.name}")
    os.kill(server, signal.SIGCONT)

    assert_exact(demo)


def test_a_port_that_is_taken_is_replaced_by_a_free_one_which_a_killed_web_server_gets_again(
    start: Start,
) -> None:
    # when  its port is taken
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = start("--port", str(port))
        address = demo.until(r"http://127\.0\.0\.1:(\d+)/admin/")
        assert f"Port {port} is taken; {address[1]} is used." in demo.output

    # and  the web server is killed
    (web,) = demo.pids("demo.web")
    os.kill(web, signal.SIGKILL)

    # then  another one answers at the same address
    demo.until(r"web is started again")
    with socket.create_connection(("127.0.0.1", int(address[1])), timeout=30) as connection:
        connection.sendall(b"GET /admin/login/ HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_everything_and_leaves_nothing(kind: signal.Signals, start: Start) -> None:
    demo = start("--port", "0", "--rate", "50")
    address = demo.until(r"http://127\.0\.0\.1:(\d+)/admin/")
    demo.until(r"published ")

    # when  it is pressed twice, by a hand that cannot wait
    demo.process.send_signal(kind)
    demo.until("Stopping")
    demo.process.send_signal(kind)

    assert demo.exit_code(timeout=30) == 0
    assert_nothing_left(demo)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address[1])), timeout=5)


def test_ctrl_c_during_the_start_leaves_nothing(start: Start) -> None:
    demo = start("--port", "0", "--seconds", "60")
    wait_until(lambda: demo.pids("manage.py", "migrate"), what="the migration")

    demo.process.send_signal(signal.SIGINT)

    assert demo.exit_code(timeout=30) == 130
    assert_nothing_left(demo)


def test_a_killed_demo_takes_its_processes_with_it(start: Start) -> None:
    demo = start("--no-web", "--rate", "20")
    demo.until(r"published ")

    demo.process.kill()
    demo.process.wait()

    wait_until(lambda: not demo.pids(), 30, what="the end of all processes")


def test_a_file_without_the_columns_is_refused_before_anything_starts(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")

    demo = start("--file", str(path))

    assert demo.exit_code(timeout=60) == 2
    assert "has no column InvoiceNo" in demo.output
    assert not (demo.data / "demo").exists()
