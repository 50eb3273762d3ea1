"""Operator verbs on groups: POST only, each with its permission. bus.operating.operate does them."""

from __future__ import annotations

from typing import Protocol

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from admin_ui import permissions, refusals, views
from admin_ui.asked import BadQuery, nothing_asked
from admin_ui.live import PageLink
from bus import default
from bus.client import Bus
from bus.errors import BusError
from bus.operating import operate
from bus.operating.audit import Actor
from bus.safety.unreadable import visible


class GroupVerb(Protocol):
    """A function of bus.operating.operate on a group."""

    def __call__(self, bus: Bus, topic: str, group: str, *, actor: Actor) -> None: ...


def actor_of(request: HttpRequest) -> Actor:
    """Return whom the audit names for this request."""
    return Actor(source="admin", who=request.user.get_username())


@require_POST
def pause_group(request: HttpRequest, site: AdminSite, name: str, group_name: str) -> HttpResponse:
    """Stop giving messages to a group."""
    done = _("Group %(group)s is paused: it is given no more messages.") % {"group": group_name}
    return _group_verb(request, site, operate.pause_group, name, group_name, done)


@require_POST
def resume_group(request: HttpRequest, site: AdminSite, name: str, group_name: str) -> HttpResponse:
    """Give messages to a paused group again."""
    done = _("Group %(group)s goes on.") % {"group": group_name}
    return _group_verb(request, site, operate.resume_group, name, group_name, done)


def _group_verb(
    request: HttpRequest, site: AdminSite, verb: GroupVerb, name: str, group_name: str, done: str
) -> HttpResponse:
    """Call a verb on a group, tell what became of it, and go back to the page of the group."""
    permissions.require(request, permissions.MANAGE_GROUPS)
    page = reverse(f"admin:{permissions.APP}_group_page", args=(name, group_name), current_app=site.name)
    try:
        nothing_asked(request)
        verb(default.get(), name, group_name, actor=actor_of(request))
    except BadQuery as error:
        back = PageLink(_("To the page of the group"), page)
        return refusals.refuse(
            request, site, error, crumbs=views.group_crumbs(site, name, group_name), back=back
        )
    except BusError as error:
        messages.error(request, visible(str(error)))
    else:
        messages.success(request, done)
    return HttpResponseRedirect(page)
