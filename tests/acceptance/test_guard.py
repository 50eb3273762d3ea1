"""Another project's tests, run as its people run them, leave what is on its development bus as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from bus.client import Bus
from bus.streams import commands
from bus.streams.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent.parent

#: The whole project: path → text. Its tests say what happened in a file, line by line.
FILES = {
    "manage.py": """
        import os, sys
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stall.settings")
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
    """,
    "stall/__init__.py": "",
    "stall/app.py": """
        import os
        from celery import Celery
        from workers import install
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stall.settings")
        app = Celery("stall", broker=os.environ["STALL_BROKER"])
        install(app)
    """,
    "stall/settings.py": """
        import json, os
        SECRET_KEY = "of-a-test"
        INSTALLED_APPS = ["bus", "workers", "store"]
        USE_TZ = True
        BUS = {"URL": os.environ["STALL_REDIS"], "PREFIX": os.environ["STALL_PREFIX"]}
        BUS |= json.loads(os.environ["STALL_BUS"])
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
    """,
    "store/__init__.py": "",
    "store/topics.py": """
        import bus
        sales = bus.topic("sales", partitions=2)
    """,
    "store/consumers.py": """
        import bus, os
        @bus.subscribe("sales", group="book")
        def book(message):
            with open("handled", "a") as file:
                file.write(f"{message.value}\\n")
    """,
    "store/tests.py": """
        import os, subprocess, sys, time
        import django
        from django.apps import apps
        if not apps.ready:
            django.setup()  # `python -m unittest` leaves it to the tests
        from django.test import TransactionTestCase
        import bus
        from stall.app import app
        from store.topics import sales

        def tell(what):
            with open("told", "a") as file:
                file.write(f"{what}\\n")

        class Tests(TransactionTestCase):
            def attempt(self, name, work):
                try:
                    work()
                    tell(f"{name}: done")
                except bus.ConfigurationError as error:
                    tell(f"{name}: {error}")

            def test_publish(self):
                self.attempt("publish", lambda: sales.publish("of a test", key="a"))

            def test_producer(self):
                def send():
                    with bus.Producer() as producer:
                        producer.send("sales", "of a test", key="b").result(10)
                self.attempt("producer", send)

            def test_worker_in_process(self):
                from celery.contrib.testing.worker import start_worker
                def work():
                    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False):
                        self.wait_for_handled()
                self.attempt("worker", work)

            def test_worker_process(self):
                command = [sys.executable, "-m", "celery", "-A", "stall.app", "worker", "-c", "1"]
                with open("worker.log", "wb") as log:
                    process = subprocess.Popen(command, stdout=log, stderr=log)
                    try:
                        ended = self.wait_for_handled(process)
                    finally:
                        process.kill()
                        process.wait()
                tell(f"process: {'refused' if ended else 'done'}")

            def wait_for_handled(self, process=None):
                # One of our own, if tests have a bus; the waiting ones of development would come as well.
                try:
                    sales.publish("for the worker")
                except bus.ConfigurationError:
                    pass
                deadline = time.monotonic() + 60
                before = os.path.getsize("handled") if os.path.exists("handled") else 0
                while time.monotonic() < deadline:
                    if process is not None and process.poll() is not None:
                        return True
                    if os.path.exists("handled") and os.path.getsize("handled") > before:
                        return False
                    time.sleep(0.05)
                raise AssertionError("the worker did nothing")
    """,
}

RUNNERS = {
    "pytest": [
        "-m",
        "pytest",
        "-p",
        "no:django",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "store/tests.py",
    ],
    "pytest-django": ["-m", "pytest", "-p", "no:xdist", "store/tests.py"],
    "manage.py": ["manage.py", "test"],
    "unittest": ["-m", "unittest", "store.tests"],
}


class Stall:
    """The project on disk, and its development bus, on which three messages wait."""

    def __init__(self, directory: Path, server: EmbeddedServer, prefix: str) -> None:
        self.directory = directory
        for name, text in FILES.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text).lstrip())
        (directory / "pytest.ini").write_text("[pytest]\npython_files = tests.py\n")
        ours = ("BUS_", "JITNEY_", "DJANGO_", "CELERY_", "PYTEST_")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(directory))),
            "PYTHONWARNINGS": "ignore",
            "PYTHONSAFEPATH": "1",
            "DJANGO_SETTINGS_MODULE": "stall.settings",
            "STALL_REDIS": server.url,
            "STALL_PREFIX": prefix,
            "STALL_BROKER": f"redis+socket://{server.url.removeprefix('unix://')}?virtual_host=1",
            "STALL_BUS": "{}",
        }
        self.bus = Bus(server.url, prefix=prefix)
        self.bus.topic("sales", partitions=2)
        for number in range(3):
            self.bus.publish("sales", f"of development {number}")

    def test(self, runner: str) -> list[str]:
        """Run the project's tests; what they told, sorted."""
        ended = subprocess.run(
            [sys.executable, *RUNNERS[runner]], cwd=self.directory, env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        told = self.directory / "told"
        assert told.exists(), f"{ended.stdout}\n{ended.stderr}"
        return sorted(told.read_text().splitlines())

    def contents(self, prefix: str) -> dict[str, bytes]:
        """All keys under a prefix, as they are."""
        keys = sorted(commands.scan(self.bus.client, f"{prefix}:*"))
        return dict(zip(keys, self.bus.client.pipe([("DUMP", key) for key in keys]), strict=True))


@pytest.fixture
def stall(tmp_path: Path, server: EmbeddedServer, prefix: str) -> Iterator[Stall]:
    stall = Stall(tmp_path / "stall", server, prefix)
    yield stall
    stall.bus.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_without_a_bus_of_their_own_tests_neither_publish_nor_consume(
    stall: Stall, runner: str, prefix: str
) -> None:
    before = stall.contents(prefix)

    told = stall.test(runner)

    assert stall.contents(prefix) == before
    assert not (stall.directory / "handled").exists()
    assert [line.partition(":")[0] for line in told] == ["process", "producer", "publish", "worker"]
    assert told[0] == "process: refused"
    log = (stall.directory / "worker.log").read_text()
    for text in (*told[1:], log):
        assert "This is a test run (" in text
        assert "Put BUS['TEST'] = {'PREFIX': 'test'} into the settings" in text


@pytest.mark.parametrize("runner", ["pytest-django", "manage.py"])
def test_with_a_bus_of_their_own_tests_work_there_and_development_goes_untouched(
    stall: Stall, runner: str, prefix: str
) -> None:
    stall.environment["STALL_BUS"] = json.dumps({"TEST": {"PREFIX": f"{prefix}-test"}})
    before = stall.contents(prefix)

    told = stall.test(runner)

    assert told == ["process: done", "producer: done", "publish: done", "worker: done"]
    assert stall.contents(prefix) == before
    handled = (stall.directory / "handled").read_text().splitlines()
    assert set(handled) <= {"of a test", "for the worker"}
    assert stall.contents(f"{prefix}-test")
