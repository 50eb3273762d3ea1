"""Every module can be reached under its dotted name, attribute by attribute, as `LOGGING` reaches it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.middleware import default_async_middleware, default_middleware

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bus", "workers", "admin_ui")


#: In a process of its own: other tests import modules anew, and leave packages with the wrong ones.
_WALK = """
import importlib, pkgutil, sys
import django
django.setup()
hidden = []
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    for one in pkgutil.walk_packages(root.__path__, f"{package}."):
        if "__main__" in one.name or ".migrations" in one.name:
            continue
        module = importlib.import_module(one.name)
        above, _, short = one.name.rpartition(".")
        if getattr(sys.modules[above], short) is not module:
            hidden.append(one.name)
print(hidden)
"""


def test_no_package_gives_the_name_of_one_of_its_modules_to_something_else(tmp_path: Path) -> None:
    environment = {
        **os.environ, "DJANGO_SETTINGS_MODULE": "config.settings", "JITNEY_DATA": str(tmp_path / "data")
    }  # fmt: skip
    command = [sys.executable, "-c", _WALK, *PACKAGES]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stdout == "[]\n", done.stdout + done.stderr


#: In a process of its own: dictConfig closes the handlers of all others.
_PROGRAM = """
import logging, logging.config
logging.config.dictConfig({
    "version": 1,
    "filters": {"delivery": {"()": "workers.middleware.log_context.DeliveryFilter"}},
    "formatters": {"line": {"format": "{message} [{bus_delivery}]", "style": "{"}},
    "handlers": {
        "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "filters": ["delivery"],
                "formatter": "line"},
    },
    "root": {"handlers": ["out"], "level": "INFO"},
})
logging.getLogger("shop").info("hello")
"""


def test_the_filter_for_deliveries_can_be_named_in_the_setting_for_logging() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert done.stdout == "hello []\n", done.stderr


@pytest.mark.parametrize("chain", [default_middleware, default_async_middleware])
def test_the_chains_of_middleware_are_functions(chain: tuple[object, ...]) -> None:
    assert all(callable(one) for one in chain)
