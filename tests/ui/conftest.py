"""A browser, a signed-in operator, and a bus of its own for each test of the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from admin_ui.data.pulse import pulse
from bus import default
from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from bus.topics import declared
from bus.topics.declared import Declared

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser(chromium: str, django_db_setup: None) -> Iterator[Browser]:
    """Chromium. Playwright runs an event loop in this thread from here on, because of which Django would
    refuse the database to all later tests; so the database is made before, and its check is off after."""
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def bus_server(valkey: EmbeddedServer) -> EmbeddedServer:
    """The server behind the pages; a test that stops it overrides this."""
    return valkey


@pytest.fixture
def bus(
    bus_server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bus]:
    """The default bus of the pages, with nothing declared by code."""
    monkeypatch.setattr(declared, "by_code", Declared())
    settings.BUS = {"URL": bus_server.url, "PREFIX": prefix, "TIMEOUT": 3}
    settings.MIDDLEWARE = ["tests.ui.csp.StrictPolicy", *settings.MIDDLEWARE]
    pulse.forget()
    yield default.get()
    default.reset()


@pytest.fixture
def operator(transactional_db: None) -> User:
    return User.objects.create_superuser("operator", "operator@example.com", "secret")


@pytest.fixture
def context(browser: Browser, live_server: Any, operator: User) -> Iterator[BrowserContext]:
    """A browser session of the operator, 1280 pixels wide, light."""
    context = browser.new_context(
        base_url=live_server.url, viewport={"width": 1280, "height": 800}, color_scheme="light"
    )
    sign_in(context, operator, live_server.url)
    yield context
    context.close()


def sign_in(context: BrowserContext, user: User, url: str) -> None:
    client = Client()
    client.force_login(user)
    cookie = client.cookies["sessionid"].value
    context.add_cookies([{"name": "sessionid", "value": cookie, "url": url}])


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained about: console errors, exceptions, policy violations."""
    return []


@pytest.fixture
def page(bus: Bus, context: BrowserContext, complaints: list[str]) -> Iterator[Page]:
    """A page whose complaints are collected."""
    page = context.new_page()
    page.on("console", lambda message: note(complaints, message))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()


def note(complaints: list[str], message: ConsoleMessage) -> None:
    """Keep an error, but for the icon that every browser asks a site for and this project has not."""
    if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
        complaints.append(f"{message.text} ({message.location['url']})")


@pytest.fixture
def open_page(page: Page) -> Callable[[str], Page]:
    """Open a path under the admin's part for the bus."""

    def go(path: str) -> Page:
        page.goto(f"/admin/jitney/{path}")
        return page

    return go
