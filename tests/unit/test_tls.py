"""The stand-alone project behind TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.tls import behind_tls

ROOT = Path(__file__).resolve().parents[2]

ASK = """
import json, os
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
from django.conf import settings as s
print(json.dumps({name: getattr(s, name) for name in (
    "DEBUG", "ALLOWED_HOSTS", "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT",
    "SECURE_HSTS_SECONDS", "CSRF_TRUSTED_ORIGINS", "SECURE_PROXY_SSL_HEADER")}))
"""


def project(tmp_path: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    names = (
        "BUS_READ_ONLY", "ALLOWED_HOSTS", "DEBUG", "HTTPS", "TRUSTED_ORIGINS", "PROXY_HEADER", "HSTS_SECONDS",
        "DJANGO_ALLOW_ASYNC_UNSAFE",  # set for tests of pages, which may run in this process
    )  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**inherited, "JITNEY_DATA": str(tmp_path / "data"), **environment},
    )  # fmt: skip


def settings_of(tmp_path: Path, **environment: str) -> dict[str, object]:
    run = project(tmp_path, "-c", ASK, **environment)
    assert run.returncode == 0, run.stderr
    found: dict[str, object] = json.loads(run.stdout)
    return found


def test_a_production_like_environment_passes_the_deployment_check(tmp_path: Path) -> None:
    run = project(tmp_path, "manage.py", "check", "--deploy", "--fail-level", "WARNING",
                  ALLOWED_HOSTS="bus.example.com", PROXY_HEADER="X-Forwarded-Proto")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "no issues" in run.stdout + run.stderr


def test_on_this_machine_it_is_for_development(tmp_path: Path) -> None:
    found = settings_of(tmp_path)
    assert (found["DEBUG"], found["SESSION_COOKIE_SECURE"], found["SECURE_SSL_REDIRECT"]) == (
        True,
        False,
        False,
    )
    assert found["SECURE_PROXY_SSL_HEADER"] is None


def test_who_names_hosts_is_in_production(tmp_path: Path) -> None:
    found = settings_of(tmp_path, ALLOWED_HOSTS="bus.example.com, .example.org", HSTS_SECONDS="60")
    assert found == {
        "DEBUG": False,
        "ALLOWED_HOSTS": ["bus.example.com", ".example.org"],
        "SESSION_COOKIE_SECURE": True,
        "CSRF_COOKIE_SECURE": True,
        "SECURE_SSL_REDIRECT": True,
        "SECURE_HSTS_SECONDS": 60,
        "CSRF_TRUSTED_ORIGINS": ["https://bus.example.com", "https://*.example.org"],
        "SECURE_PROXY_SSL_HEADER": None,
    }


def test_each_of_it_can_be_chosen(tmp_path: Path) -> None:
    found = settings_of(tmp_path, ALLOWED_HOSTS="a", DEBUG="1", HTTPS="1", PROXY_HEADER="X-Forwarded-Proto",
                        TRUSTED_ORIGINS="https://b:8443,http://c")  # fmt: skip
    assert (found["DEBUG"], found["SESSION_COOKIE_SECURE"]) == (True, True)
    assert found["SECURE_PROXY_SSL_HEADER"] == ["HTTP_X_FORWARDED_PROTO", "https"]
    assert found["CSRF_TRUSTED_ORIGINS"] == ["https://b:8443", "http://c"]
    plain = settings_of(tmp_path, ALLOWED_HOSTS="a", HTTPS="0")
    assert (plain["DEBUG"], plain["SESSION_COOKIE_SECURE"], plain["SECURE_HSTS_SECONDS"]) == (False, False, 0)


@pytest.mark.parametrize("name", ["BUS_READ_ONLY", "HTTPS", "DEBUG"])
def test_a_word_that_is_neither_yes_nor_no_is_refused_and_not_taken_for_no(name: str, tmp_path: Path) -> None:
    run = project(tmp_path, "manage.py", "check", ALLOWED_HOSTS="a", **{name: "ja"})

    assert run.returncode != 0
    assert f"{name} must be 1 or 0 (or true, yes, on; false, no, off), not 'ja'" in run.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("origins", ["bus.example.com"]), ("proxy_header", "X Forwarded"), ("hsts_seconds", "a day")],
)
def test_what_cannot_be_meant_is_refused(name: str, value: object) -> None:
    right: dict[str, object] = {"wanted": True, "origins": [], "proxy_header": "", "hsts_seconds": ""}
    behind_tls(["a"], **right)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name.replace("origins", "trusted_origins").upper()):
        behind_tls(["a"], **{**right, name: value})  # type: ignore[arg-type]
