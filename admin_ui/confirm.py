"""Retries and discards dead letters: a page that counts them, then the verb when it is confirmed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from admin_ui import letters, permissions, refusals, views
from admin_ui.actions import actor_of
from admin_ui.asked import BadQuery
from admin_ui.live import PageLink
from bus import default
from bus.client import Bus
from bus.errors import BusError, ReadOnly
from bus.operating import deadletters, operate
from bus.operating.deadletters import Selection
from bus.operating.fates import Tally
from bus.safety.unreadable import visible


@dataclass(frozen=True, slots=True)
class Verb:
    """What can be done with dead letters: its name, its permission, and the function that does it."""

    name: str
    permission: tuple[str, ...]
    work: Callable[..., Tally]


RETRY = Verb("retry", permissions.RETRY_DEAD, operate.retry_dead_letters)
DISCARD = Verb("discard", permissions.DISCARD_DEAD, operate.discard_dead_letters)


@require_http_methods(["GET", "HEAD", "POST"])
def retry(request: HttpRequest, site: AdminSite, name: str, group_name: str) -> HttpResponse:
    """Give dead letters back to their group alone."""
    return _ask_or_do(request, site, RETRY, name, group_name)


@require_http_methods(["GET", "HEAD", "POST"])
def discard(request: HttpRequest, site: AdminSite, name: str, group_name: str) -> HttpResponse:
    """Remove dead letters for good."""
    return _ask_or_do(request, site, DISCARD, name, group_name)


def _ask_or_do(request: HttpRequest, site: AdminSite, verb: Verb, topic: str, group: str) -> HttpResponse:
    permissions.require(request, permissions.VIEW)
    permissions.require(request, verb.permission)
    if letters.needs_peek(request.GET):
        permissions.require(request, permissions.PEEK)
    request.current_app = site.name
    page = reverse(f"admin:{permissions.APP}_group_dead", args=(topic, group), current_app=site.name)
    try:
        bus = default.get()
        if request.method != "POST":
            return _ask(request, site, verb, topic, group, bus)
        now = deadletters.bounded(bus, Selection()).until
        assert now is not None
        counted = letters.counted(request.GET, request.POST, now)
        letters.partitions(bus, topic, group, counted)
        tally = verb.work(bus, topic, group, counted, actor=actor_of(request))
    except BadQuery as error:
        crumbs = [*views.group_crumbs(site, topic, group), PageLink(_("Dead letters"), page)]
        return refusals.refuse(
            request, site, error, crumbs=crumbs, back=PageLink(_("To the dead letters of the group"), page)
        )
    except BusError as error:
        messages.error(request, visible(str(error)))
    else:
        _tell(request, tally)
    return HttpResponseRedirect(page)


def _ask(request: HttpRequest, site: AdminSite, verb: Verb, topic: str, group: str, bus: Bus) -> HttpResponse:
    if bus.settings.read_only:
        raise ReadOnly(_("This project is read-only (BUS['READ_ONLY'])."))
    selection = letters.meant(request.GET)
    every = letters.partitions(bus, topic, group, selection)
    bounded = deadletters.bounded(bus, selection)
    assert bounded.until is not None
    count = deadletters.count_matching(bus, topic, group, bounded, every)
    context: dict[str, Any] = {
        **site.each_context(request),
        "title": _("Dead letters"),
        "crumbs": [*views.group_crumbs(site, topic, group), PageLink(_("Dead letters"))],
        "tabs": views.topic_tabs(request, site, topic, ""),
        "verb": verb.name,
        "topic_name": topic,
        "group_name": group,
        "count": count,
        "query": letters.to_confirm(request.GET, selection),
        "until": int(bounded.until.timestamp() * 1000),
    }
    return TemplateResponse(request, "admin_ui/confirm_letters.html", context)


def _tell(request: HttpRequest, tally: Tally) -> None:
    """Tell what became of the letters: good news and bad, each with its number."""
    done = tally.retried + tally.discarded
    if tally.retried or not tally.discarded:
        text = ngettext(
            "%(count)d dead letter is given back to the group.",
            "%(count)d dead letters are given back to the group.",
            done,
        )
    else:
        text = ngettext("%(count)d dead letter is discarded.", "%(count)d dead letters are discarded.", done)
    if done:
        messages.success(request, text % {"count": done})
    if tally.gone:
        messages.warning(request, _("%(count)d were gone already.") % {"count": tally.gone})
    if tally.kept:
        words = _(
            "%(count)d stay dead letters: Redis lacks the group or the stream, or no copy of them was kept."
        )
        messages.error(request, words % {"count": tally.kept})
    if not tally.total:
        messages.info(request, _("There was nothing to do."))
