"""The page that says why a request to act was refused."""

from __future__ import annotations

from collections.abc import Sequence

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from admin_ui.asked import BadQuery
from admin_ui.live import PageLink, trouble_of


def refuse(
    request: HttpRequest, site: AdminSite, error: BadQuery, *, crumbs: Sequence[PageLink], back: PageLink
) -> HttpResponse:
    """Return the page, with status 400; `back` leads to where the right request can be made."""
    request.current_app = site.name
    trouble = trouble_of(error)
    context = {
        **site.each_context(request),
        "title": _("Nothing was done"),
        "crumbs": crumbs,
        "trouble": trouble,
        "back": back,
    }
    return TemplateResponse(request, "admin_ui/refused.html", context, status=trouble.status)
