"""A page and its live region: the whole page at first, then the region alone for the script that polls.

The region is `?live=1` of the page's own address. It has an ETag, so an unchanged one costs no bytes.
Where Redis is away the region says so with status 503, and comes back by itself at a later poll.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.translation import gettext as _

from admin_ui.asked import BadQuery
from admin_ui.data.pulse import pulse
from bus import default
from bus.client import Bus
from bus.errors import (
    BusError,
    ConfigurationError,
    Forbidden,
    ForeignData,
    UnknownGroup,
    UnknownTopic,
)
from bus.safety.unreadable import visible


@dataclass(frozen=True, slots=True)
class PageLink:
    """A link of the breadcrumbs or of a row of tabs; None: the page itself."""

    text: str
    url: str | None = None
    current: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What surrounds a live region; it needs no Redis."""

    title: str
    fragment: str
    """Template of the live region."""
    subtitle: str = ""
    crumbs: Sequence[PageLink] = ()
    tabs: Sequence[PageLink] = ()
    tools: str = ""
    """Template between the tabs and the region, for forms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why the live region has nothing to show."""

    status: int
    title: str
    text: str
    advice: str


def respond(
    request: HttpRequest,
    site: AdminSite,
    frame: Frame,
    read: Callable[[Bus], object],
    **context: Any,
) -> HttpResponse:
    """Return the page, or its region alone. `read` asks Redis; a BusError becomes a clear page.

    Templates see each field of the dataclass that `read` returns under its own name.
    """
    request.current_app = site.name
    trouble, rows = None, {}
    try:
        rows = _fields_of(read(default.get()))
    except BusError as error:
        trouble = trouble_of(error)
        pulse.forget()
    values = {**context, **rows, "frame": frame, "trouble": trouble, "is_live": True}
    if "live" in request.GET:
        return _region(request, frame, values)
    values |= site.each_context(request)
    values |= {"title": visible(frame.title), "subtitle": None, "live_url": _live_url(request)}
    body = render_to_string("admin_ui/page.html", values, request)
    return _answer(body, trouble.status if trouble else 200)


def _fields_of(rows: Any) -> dict[str, Any]:
    return {field.name: getattr(rows, field.name) for field in fields(rows)}


def trouble_of(error: BusError) -> Trouble:
    """Return what a page says of an error of the bus."""
    if isinstance(error, BadQuery):
        return Trouble(
            status=400,
            title=_("This cannot be asked"),
            text=str(error),
            advice=_("Nothing was looked for and nothing was changed. Search again on the page itself."),
        )
    if isinstance(error, UnknownTopic | UnknownGroup):
        return Trouble(
            status=404,
            title=_("It is not there"),
            text=str(error),
            advice=_("It may have been deleted. The list of topics shows what there is."),
        )
    if isinstance(error, ForeignData):
        return Trouble(
            status=200,  # nothing is down: this is what there is to see
            title=_("It cannot be read"),
            text=str(error),
            advice=_(
                "Redis holds what Jitney does not write there. `bus doctor` names it, and says what to do."
            ),
        )
    if isinstance(error, ConfigurationError):
        return Trouble(
            status=503,
            title=_("The bus is not set up correctly"),
            text=str(error),
            advice=_("Mend the BUS setting of the project, then start the web server again."),
        )
    if isinstance(error, Forbidden):
        return Trouble(
            status=503,
            title=_("The Redis user of this project may not look at this"),
            text=str(error),
            advice=_("docs/security.md of Jitney has the access rules that these pages need."),
        )
    return Trouble(
        status=503,
        title=_("Redis does not answer"),
        text=str(error),
        advice=_(
            "Check that the server runs and can be reached from this machine. Workers and this page go on by "
            "themselves as soon as it answers."
        ),
    )


def _region(request: HttpRequest, frame: Frame, values: Mapping[str, Any]) -> HttpResponse:
    trouble = values["trouble"]
    template = "admin_ui/_trouble.html" if trouble else frame.fragment
    body = render_to_string(template, dict(values), request)
    etag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    if request.headers.get("If-None-Match") == etag and not trouble:
        response = _answer("", 304)
    else:
        response = _answer(body, trouble.status if trouble else 200)
    response["ETag"] = etag
    response["X-Jitney-Region"] = "1"
    # Django would log, and mail, an error at every poll of every open page; the page itself is logged once.
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django's own mark
    return response


def _answer(body: str, status: int) -> HttpResponse:
    response = HttpResponse(body, status=status)
    response["Cache-Control"] = "private, no-store"
    return response


def _live_url(request: HttpRequest) -> str:
    """Return the address of the region: this one, with what is chosen in it, and `live`."""
    query = request.GET.copy()
    query["live"] = "1"
    return f"?{query.urlencode()}"
