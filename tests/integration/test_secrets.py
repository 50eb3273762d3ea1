"""A password that can be recognised stands in every form of URL, and all that can fail fails: is it shown?"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core import mail
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import Client, RequestFactory
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter

import bus as api
from bus import checks, conf, default, doctor
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.errors import BusError
from bus.reporting import ReporterFilter, without_passwords
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Link
from tests.passwords import BAD_PLACES, GOOD_PLACES, WORDS, is_told

ROOT = Path(__file__).parents[2]
WORD = WORDS[0]

pytestmark = pytest.mark.django_db

#: In a path of a socket or as a host it is no password.
NO_PASSWORD = ("redis://{}", "unix://{}/x", "redis://h/{}", "redis://h:{}")


@pytest.fixture(autouse=True)
def _own_bus() -> Iterator[None]:
    default.reset()
    yield
    default.reset()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """All that was logged and written by now."""
    caplog.set_level(logging.DEBUG)
    return lambda: [caplog.text, *map(str, caplog.records), *capsys.readouterr()]


def reports(error: BaseException) -> list[str]:
    """Django's debug page and mail about an error, with all local variables and settings; a traceback."""
    request = RequestFactory().get("/admin/")
    reporter = ExceptionReporter(request, type(error), error, error.__traceback__)
    # Django's own filter, as in a project that knows nothing of ours
    assert type(reporter.filter).__name__ in ("SafeExceptionReporterFilter", "ReporterFilter")
    return [reporter.get_traceback_html(), reporter.get_traceback_text(),
            "".join(traceback.format_exception(error)), repr(error)]  # fmt: skip


def everything(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """What the default bus shows wherever somebody can look."""
    yield repr(django_settings.BUS)
    try:
        yield repr(conf.from_django())
        bus = default.get()
        yield repr(vars(bus))
        yield repr(bus.endpoint.address)
        yield bus.endpoint.safe_url
        yield repr(doctor.examine(bus))
    except BusError as error:
        yield from reports(error)
    yield repr(checks.check_setting())
    for verb in (lambda: api.publish("orders", 1), lambda: default.get().client.call("PING")):
        try:
            verb()
        except BusError as error:
            yield from reports(error)
    for operator in (Audited, Direct):
        for command in (["doctor"], ["doctor", "--json"], ["topics"], ["publish", "orders", "1"],
                        ["topic", "create", "wages"], ["server", "status"]):  # fmt: skip
            tree.run(Session(default.get, operator), command, "bus")
    yield from capsys.readouterr()
    try:
        call_command("check", stderr=(err := io.StringIO()), stdout=(out := io.StringIO()))
    except SystemCheckError as error:
        yield str(error)
    yield err.getvalue() + out.getvalue()


def pages() -> Iterator[str]:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("ada"))
    group = "topic/named/orders/groups/g/"
    for path in ("overview/", "topic/", "topic/named/orders/", "worker/", "topic/named/orders/messages/",
                 "topic/add/", group, f"{group}dead/"):  # fmt: skip
        answer = client.get(f"/admin/jitney/{path}")
        assert answer.status_code in (200, 404, 503), path
        yield answer.content.decode()


@pytest.mark.parametrize("place", GOOD_PLACES + [each for each in BAD_PLACES if each not in NO_PASSWORD])
def test_no_form_of_url_shows_its_password_anywhere(
    settings: Any, place: str, told: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "django.views.debug.SafeExceptionReporterFilter"
    for name in ("h", "a", "b"):  # nobody is there, and nobody is asked for the name
        place = place.replace(f"@{name}", "@127.0.0.1:1") if place in GOOD_PLACES else place
    settings.BUS = {"URL": place.format(WORD), "TIMEOUT": 0.5}
    shown = [*everything(capsys), *pages(), *told()]
    assert len(shown) > 10
    assert [text for text in shown if is_told(text)] == []


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_a_server_with_a_password_shows_it_nowhere(
    settings: Any, own_server: EmbeddedServer, told: Callable[[], list[str]], right: bool, beside: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # given a server that wants it, or another one
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "django.views.debug.SafeExceptionReporterFilter"
    path = own_server._site.socket
    with_server = Bus(own_server.url)
    with_server.client.call("CONFIG", "SET", "requirepass", WORD if right else "another")
    settings.BUS = (
        {"URL": f"unix://{path}", "PASSWORD": WORD} if beside else {"URL": f"unix://{path}?password={WORD}"}
    )
    assert [each.level for each in doctor.examine(default.get())[:1]] == ["ok" if right else "error"]
    # when everything is looked at
    shown = [*everything(capsys), *pages(), *told()]
    assert [text for text in shown if is_told(text)] == []
    with_server.close()


@pytest.mark.parametrize("step", ["send", "receive", "receive_many"])
def test_an_error_of_any_kind_while_it_is_sent_shows_it_in_no_frame(
    settings: Any, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, step: str, mailoutbox: Any
) -> None:
    # given a failure that nobody expects, in the midst of logging in
    settings.BUS = {"URL": f"unix://shop:{WORD}@{own_server._site.socket}?db=1"}
    settings.ADMINS = [("Ada", "ada@example.com")]
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "django.views.debug.SafeExceptionReporterFilter"

    def fail(self: Link, *arguments: Any) -> None:
        del self
        raise ZeroDivisionError("in the midst of it")

    monkeypatch.setattr(Link, step, fail)
    # when pages and callers meet it
    with pytest.raises(ZeroDivisionError) as caught:
        default.get().client.call("PING")
    shown = reports(caught.value)
    for debug in (True, False):
        settings.DEBUG = debug
        client = Client(raise_request_exception=False)
        client.force_login(User.objects.create_superuser(f"ada{debug}"))
        answer = client.get("/admin/jitney/overview/")  # without DEBUG this is mailed too
        assert answer.status_code == 500
        shown.append(answer.content.decode())
    # and their errors are mailed, whole
    record = logging.LogRecord("django.request", logging.ERROR, "", 0, "failed", None, caught._excinfo)
    record.request = RequestFactory().get("/")
    AdminEmailHandler(include_html=True).emit(record)
    assert mail.outbox
    shown += [text for message in mail.outbox for text in (message.body, str(message.alternatives))]
    assert "in the midst of it" in shown[0]
    assert "greeting" in shown[0]
    # then nobody can read it there
    assert [text for text in shown if is_told(text)] == []


def test_our_filter_masks_what_runserver_copies_from_the_environment() -> None:
    variables = {"BUS_URL": f"redis://:{WORD}@h", "CELERY_BROKER_URL": f"redis://h?password={WORD}"}
    request = RequestFactory().get("/", **variables)
    found = ReporterFilter().get_safe_request_meta(request)
    assert (found["BUS_URL"], found["CELERY_BROKER_URL"]) == ("redis://***:***@h", "redis://h?password=***")
    assert django_settings.DEFAULT_EXCEPTION_REPORTER_FILTER == "bus.reporting.ReporterFilter"


@pytest.mark.parametrize(
    "text", ["", "no url", "http://h/?q=1", "user@example.com", "redis://h:1/0", "a://b c@d"]
)
def test_our_filter_leaves_alone_what_has_no_password(text: str) -> None:
    assert without_passwords(text) == text


def test_a_password_in_the_environment_is_not_in_the_errors_of_a_process_without_django() -> None:
    code = "import bus, traceback\ntry: bus.publish('orders', 1)\nexcept bus.BusError: traceback.print_exc()"
    for variables in ({"BUS_URL": f"redis://:{WORD}@127.0.0.1:1"}, {"BUS_URL": f"redis://:a/{WORD}@h"},
                      {"BUS_URL": "redis://127.0.0.1:1", "BUS_PASSWORD": WORD}):  # fmt: skip
        for command in ([sys.executable, "-c", code], [sys.executable, "-m", "bus.cli", "doctor"]):
            run = subprocess.run(
                command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            assert "Error" in run.stderr or "error" in run.stdout
            assert not is_told(run.stdout + run.stderr)
