"""A process that is forked beside database work of a thread can use the database all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, sys, threading
import django
django.setup()
from django.db import OperationalError, connection, transaction
from workers.fork_guard import fork_guard

with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE IF NOT EXISTS note (text TEXT)")
connection.close()
if sys.argv[1] == "armed":
    fork_guard.arm()
writing, go_on = threading.Event(), threading.Event()

def work():
    with fork_guard.work():
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO note VALUES ('thread')")
            writing.set()
            go_on.wait(20)

thread = threading.Thread(target=work)
thread.start()
writing.wait(20)
threading.Timer(0.3, go_on.set).start()
pid = os.fork()
if pid == 0:
    code = 3
    try:
        go_on.wait(0)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO note VALUES ('child')")
        code = 0
    except OperationalError as error:
        code = 4 if "locked" in str(error) else 5
    finally:
        os._exit(code)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(("armed", "code"), [("armed", "0"), ("not", "4")])
def test_a_fork_waits_for_a_thread_that_writes_to_sqlite(tmp_path: Path, armed: str, code: str) -> None:
    # Without the guard it fails, so the guard is what this test is about
    settings = tmp_path / "forked_settings.py"
    settings.write_text(
        "from config.settings import *\n"
        "DATABASES['default']['OPTIONS'] = {**DATABASES['default']['OPTIONS'], 'timeout': 3}\n"
    )
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "forked_settings",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "JITNEY_DATA": str(tmp_path / "data"),
        "BUS_URL": "redis://127.0.0.1:1/0",
    }
    environment.pop("JITNEY_DATABASE", None)
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, armed], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert answer.stdout.strip() == code, answer.stderr
