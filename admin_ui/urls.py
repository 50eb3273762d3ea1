"""Addresses of the pages, for the ModelAdmins that mount them. Every view is wrapped by the admin site."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path

from admin_ui import actions, confirm, views
from admin_ui.permissions import APP

View = Callable[..., HttpResponse]


def overview_urls(site: AdminSite) -> list[URLPattern]:
    return [path("", _on(site, views.overview), name=f"{APP}_overview_changelist")]


def worker_urls(site: AdminSite) -> list[URLPattern]:
    return [path("", _on(site, views.workers), name=f"{APP}_worker_changelist")]


def topic_urls(site: AdminSite) -> list[URLPattern]:
    """Return the pages of topics. `named/` keeps names apart from numbers and verbs of stock addresses."""
    group = "named/<str:name>/groups/<str:group_name>"
    return [
        path("named/<str:name>/", _on(site, views.topic), name=f"{APP}_topic_page"),
        path("named/<str:name>/messages/", _on(site, views.messages), name=f"{APP}_topic_messages"),
        path(f"{group}/", _on(site, views.group), name=f"{APP}_group_page"),
        path(f"{group}/dead/", _on(site, views.dead_letters), name=f"{APP}_group_dead"),
        path(f"{group}/dead/retry/", _on(site, confirm.retry), name=f"{APP}_dead_retry"),
        path(f"{group}/dead/discard/", _on(site, confirm.discard), name=f"{APP}_dead_discard"),
        path(f"{group}/pause/", _on(site, actions.pause_group), name=f"{APP}_group_pause"),
        path(f"{group}/resume/", _on(site, actions.resume_group), name=f"{APP}_group_resume"),
    ]


def _on(site: AdminSite, view: View) -> View:
    """Return the view for this admin site: signed-in staff only, CSRF checked."""

    def bound(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        return view(request, site, **kwargs)

    wrapped: View = site.admin_view(update_wrapper(bound, view))
    return wrapped
