"""A second Django project, written here, uses the installed wheel: the checkout is out of its reach."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bus.streams.embedded import EmbeddedServer
from tests import ending
from tests.waiting import wait_until

#: The whole project: path → text. Its Celery app has a broker, a queue and tasks of its own.
FILES = {
    "manage.py": """
        import os, sys
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
    """,
    "shop/__init__.py": """
        from shop.celery import app as celery_app
        __all__ = ["celery_app"]
    """,
    "shop/celery.py": """
        import os
        from celery import Celery
        from workers import install

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        app = Celery("shop", broker=os.environ["SHOP_BROKER"])
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks()
        install(app)
    """,
    "shop/settings.py": """
        import os
        from pathlib import Path

        BASE_DIR = Path(__file__).resolve().parent.parent
        SECRET_KEY = "of-a-test"
        DEBUG = True
        ROOT_URLCONF = "shop.urls"
        STATIC_URL = "static/"
        USE_TZ = True
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        INSTALLED_APPS = [
            "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
            "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles",
            "bus", "workers", "admin_ui",
            "store",
        ]
        BUS = {"URL": os.environ["SHOP_REDIS"], "PREFIX": os.environ["SHOP_PREFIX"]}
        CELERY_TASK_DEFAULT_QUEUE = os.environ["SHOP_PREFIX"]
        CELERY_TASK_IGNORE_RESULT = True
        DATABASES = {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": BASE_DIR / "db.sqlite3",
                "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
            },
        }
        MIDDLEWARE = [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ]
        TEMPLATES = [{
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {"context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]},
        }]
    """,
    "shop/urls.py": """
        from django.contrib import admin
        from django.urls import path
        urlpatterns = [path("backstage/", admin.site.urls)]
    """,
    "store/__init__.py": "",
    "store/models.py": """
        from django.db import models

        class Sale(models.Model):
            sku = models.CharField(max_length=20)
            quantity = models.IntegerField()

        class Note(models.Model):
            text = models.CharField(max_length=100)
    """,
    "store/topics.py": """
        import bus
        sales = bus.topic("sales", partitions=2)
    """,
    "store/consumers.py": """
        import bus
        from store.models import Sale

        @bus.subscribe("sales", group="book")
        def book(message):
            Sale.objects.create(sku=message.key, quantity=message.value["quantity"])
    """,
    "store/tasks.py": """
        from celery import shared_task
        from store.models import Note

        @shared_task
        def note(text):
            Note.objects.create(text=text)
    """,
}

#: Where the packages come from, which of the checkout's others can be seen, and whose Celery app is current.
_ORIGIN = """
import json
from importlib.util import find_spec
from celery import current_app
print(json.dumps({
    "origins": [find_spec(name).origin for name in ("bus", "workers", "admin_ui")],
    "strangers": [name for name in ("config", "demo", "tests", "benchmarks") if find_spec(name)],
    "celery": current_app.main,
}))
"""

#: The pages of the bus in this project's admin, as a superuser gets them.
_PAGES = """
import json
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
client = Client(headers={"host": "localhost"})
client.force_login(User.objects.create_superuser("boss"))
pages = {
    "overview": reverse("admin:jitney_overview_changelist"),
    "topics": reverse("admin:jitney_topic_changelist"),
    "topic": reverse("admin:jitney_topic_page", args=["sales"]),
    "group": reverse("admin:jitney_group_page", args=["sales", "book"]),
}
answers = {name: client.get(page) for name, page in pages.items()}
print(json.dumps({
    "status": {name: answer.status_code for name, answer in answers.items()},
    "overview": answers["overview"].content.decode(),
}))
"""


class Project:
    """The second project on disk, and the commands of its users."""

    def __init__(self, directory: Path, installed: Path, server: EmbeddedServer, prefix: str) -> None:
        self.directory = directory
        for name, text in FILES.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(line.removeprefix("        ") for line in text.strip("\n").split("\n")))
        socket = server.url.removeprefix("unix://")
        ours = ("BUS_", "JITNEY_", "DJANGO_", "CELERY_", "PYTEST_")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "PYTHONPATH": os.pathsep.join((str(installed), str(directory))),
            "PYTHONSAFEPATH": "1",
            "PYTHONWARNINGS": "ignore",
            "SHOP_REDIS": server.url,
            "SHOP_PREFIX": prefix,
            "SHOP_BROKER": f"redis+socket://{socket}?virtual_host=1",
        }
        self.log = directory / "worker.log"

    def manage(self, *arguments: str) -> str:
        """Run manage.py to its end; its output."""
        ended = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert ended.returncode == 0, f"manage.py {' '.join(arguments)}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def shell(self, code: str) -> Any:
        """What a script in the project's shell prints as its last line, as JSON."""
        return json.loads(self.manage("shell", "--no-imports", "-c", code).splitlines()[-1])

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "2", "-l", "INFO"]
        with self.log.open("wb") as output:
            return subprocess.Popen(
                ending.with_tests(command),
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.directory / "db.sqlite3", timeout=20)) as database:
            return database.execute(query).fetchall()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, installed: Path, valkey: EmbeddedServer) -> Project:
    """The project, with its database migrated. One for all: each command takes a second of CPU."""
    project = Project(tmp_path_factory.mktemp("project"), installed, valkey, f"t{uuid.uuid4().hex[:10]}")
    project.manage("makemigrations", "store")
    project.manage("migrate")
    return project


@pytest.fixture
def worker(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """The project's own Celery worker."""
    process = project.start_worker()
    try:
        wait_until(
            lambda: " ready." in project.log.read_text(errors="replace") or process.poll() is not None,
            60,
            "the worker to be ready",
        )
        assert process.poll() is None, project.log.read_text(errors="replace")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def test_the_second_project_sees_the_installed_packages_and_its_own_celery_app(
    project: Project, installed: Path
) -> None:
    seen = project.shell(_ORIGIN)
    assert all(Path(origin).is_relative_to(installed) for origin in seen["origins"])
    assert seen["strangers"] == []
    assert seen["celery"] == "shop"
    assert "no issues" in project.manage("check")


def test_migrating_the_second_project_puts_its_topics_into_redis(project: Project) -> None:
    (topic,) = json.loads(project.manage("bus", "topics", "--json"))
    assert (topic["name"], topic["partitions"]) == ("sales", 2)
    assert project.rows("SELECT name, partitions, origin FROM jitney_topic") == [("sales", 2, "code")]


@pytest.mark.timeout(240)
def test_the_second_project_consumes_runs_its_tasks_and_shows_its_pages(
    project: Project, worker: subprocess.Popen[bytes]
) -> None:
    # when messages are published on its command line, and a task is sent to its own broker
    for number in range(3):
        project.manage("bus", "publish", "sales", json.dumps({"quantity": number}), "--key", f"A{number}")
    project.manage("shell", "-c", "from store.tasks import note; note.delay('hello')")

    # then its handler has stored them, and its task has run, in the same worker
    wait_until(lambda: len(project.rows("SELECT id FROM store_sale")) >= 3, 60, "three sales")
    assert sorted(project.rows("SELECT sku, quantity FROM store_sale")) == [("A0", 0), ("A1", 1), ("A2", 2)]
    wait_until(lambda: project.rows("SELECT text FROM store_note") == [("hello",)], 60, "the task's note")

    # and command line and admin tell of it
    def lag() -> Any:
        (group,) = json.loads(project.manage("bus", "groups", "--json"))
        return group["lag"]["count"], group["pending"], group["workers"]

    wait_until(lambda: lag() == (0, 0, 1), 60, "everything to be settled")
    pages = project.shell(_PAGES)
    assert set(pages["status"].values()) == {200}, pages["status"]
    assert "book" in pages["overview"]

    # and it stops as every Celery worker does
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert project.rows("SELECT COUNT(*) FROM store_sale") == [(3,)]
