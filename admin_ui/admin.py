"""Mounts the pages in the stock admin: `register` does it for any AdminSite."""

# ruff: noqa: ARG002 - the methods of a ModelAdmin are given more than these need

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from admin_ui import permissions, urls, views
from admin_ui.actions import actor_of
from admin_ui.forms import DeleteTopicForm, TopicForm
from admin_ui.live import PageLink
from admin_ui.pages import Overview, Worker
from bus import default
from bus.errors import BusError
from bus.models import AuditRecord, Topic
from bus.operating import operate
from bus.safety.unreadable import visible, visible_json

# Django's classes take a type parameter for the type checker alone.
if TYPE_CHECKING:
    from django.db.models import Model

    _PageAdmin = admin.ModelAdmin[Model]
    _TopicAdmin = admin.ModelAdmin[Topic]
    _AuditRecordAdmin = admin.ModelAdmin[AuditRecord]
else:
    _PageAdmin = _TopicAdmin = _AuditRecordAdmin = admin.ModelAdmin

_Fields = tuple[str, ...]


class PageAdmin(_PageAdmin):
    """An entry of the list of apps that leads to a page without a table."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return permissions.may(request, permissions.VIEW)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return permissions.may(request, permissions.VIEW)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class OverviewAdmin(PageAdmin):
    def get_urls(self) -> list[URLPattern]:
        return urls.overview_urls(self.admin_site)


class WorkerAdmin(PageAdmin):
    def get_urls(self) -> list[URLPattern]:
        return urls.worker_urls(self.admin_site)


class TopicAdmin(_TopicAdmin):
    """The list of topics as Redis has them; forms for the rows, which act through bus.operating.operate."""

    form = TopicForm
    actions = None

    def has_module_permission(self, request: HttpRequest) -> bool:
        return super().has_module_permission(request) or permissions.may(request, permissions.VIEW)

    def has_view_permission(self, request: HttpRequest, obj: Topic | None = None) -> bool:
        return super().has_view_permission(request, obj) or permissions.may(request, permissions.VIEW)

    def get_urls(self) -> list[URLPattern]:
        return urls.topic_urls(self.admin_site) + super().get_urls()

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return views.topics(request, self.admin_site)

    def get_readonly_fields(self, request: HttpRequest, obj: Topic | None = None) -> list[str]:
        """Return what cannot be changed here: the name, and what code declares."""
        if obj is None:
            return []
        return ["name", "partitions", "retention", "origin"] if obj.declared else ["name", "origin"]

    def get_fields(self, request: HttpRequest, obj: Topic | None = None) -> _Fields:
        fields = ("name", "partitions", "retention", "notes")
        return fields if obj is None else (*fields, "origin")

    def get_form(
        self, request: HttpRequest, obj: Topic | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        form: Any = super().get_form(request, obj, change=change, **kwargs)
        form.actor = actor_of(request)
        return form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Show and store the form. If Redis goes away at the very commit, say so: the row is stored then."""
        context = {**(extra_context or {}), **self._settings_context(request, object_id)}
        try:
            return super().changeform_view(request, object_id, form_url, context)
        except BusError as error:
            text = _("Stored, but Redis does not have it yet: %(error)s Run `manage.py bus topic sync`.")
            messages.warning(request, text % {"error": error})
            return self._to_list()

    def save_model(self, request: HttpRequest, obj: Topic, form: TopicForm, change: bool) -> None:
        """Do nothing: the form has stored it."""

    def has_delete_permission(self, request: HttpRequest, obj: Topic | None = None) -> bool:
        """Refuse for a topic that code declares: it would come back."""
        return super().has_delete_permission(request, obj) and not (obj is not None and obj.declared)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Delete a topic with all its messages, once its name is typed."""
        topic = self.get_object(request, object_id)
        if topic is None:
            raise Http404
        if not self.has_delete_permission(request, topic):
            raise PermissionDenied
        form = DeleteTopicForm(request.POST or None)
        if request.method == "POST" and form.is_valid() and self._delete(request, topic, form):
            return self._to_list()
        context = {
            **self.admin_site.each_context(request),
            **self._settings_context(request, object_id),
            "title": _("Delete topic"),
            "topic": topic,
            "form": form,
        }
        return TemplateResponse(request, "admin_ui/delete_topic.html", context)

    def _delete(self, request: HttpRequest, topic: Topic, form: DeleteTopicForm) -> bool:
        confirm = form.cleaned_data["confirm"]
        try:
            operate.delete_topic(default.get(), topic.name, confirm=confirm, actor=actor_of(request))
        except BusError as error:
            form.add_error("confirm", str(error))
            return False
        messages.success(request, _("Topic %(name)s and its messages are deleted.") % {"name": topic.name})
        return True

    def _settings_context(self, request: HttpRequest, object_id: str | None) -> dict[str, Any]:
        """Return the breadcrumbs and tabs that the forms share with the pages."""
        request.current_app = self.admin_site.name
        topics = views.topics_link(self.admin_site)
        topic = self.get_object(request, object_id) if object_id else None
        if topic is None:
            return {"crumbs": [topics, PageLink(_("Add topic"))], "tabs": []}
        return {
            "crumbs": [topics, views.topic_link(self.admin_site, topic.name), PageLink(_("Settings"))],
            "tabs": views.topic_tabs(request, self.admin_site, topic.name, "settings"),
            "declared": topic.declared is not None,
        }

    def _to_list(self) -> HttpResponse:
        name = f"admin:{permissions.APP}_topic_changelist"
        return HttpResponseRedirect(reverse(name, current_app=self.admin_site.name))


class AuditRecordAdmin(_AuditRecordAdmin):
    """Who did what, and what became of it. Nobody changes it."""

    list_display = ["when", "who", "source", "verb", "topic", "group", "outcome"]
    list_filter = ["outcome", "verb", "source"]
    search_fields = ["topic", "group", "who"]
    date_hierarchy = None
    show_full_result_count = False
    list_per_page = 50
    actions = None

    def get_fields(self, request: HttpRequest, obj: AuditRecord | None = None) -> _Fields:
        """Return what is shown. Reasons of dead letters may hold values, so they take the right to read."""
        detail = "detail_in_full" if permissions.may(request, permissions.PEEK) else "detail_without_reasons"
        return ("when", "who", "source", "verb", "topic", "group", "outcome", "error_text", detail)

    def get_readonly_fields(self, request: HttpRequest, obj: AuditRecord | None = None) -> _Fields:
        return self.get_fields(request, obj)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse filters by fields that are not shown: what is found would tell what they hold."""
        shown = lookup.partition("__")[0] in self.list_display
        return (shown or permissions.may(request, permissions.PEEK)) and super().lookup_allowed(
            lookup, value, request
        )

    @admin.display(description=_("error"))
    def error_text(self, record: AuditRecord) -> str:
        return visible(record.error, keep="\n\t")

    @admin.display(description=_("detail"))
    def detail_in_full(self, record: AuditRecord) -> str:
        return _pretty(record.detail)

    @admin.display(description=_("detail"))
    def detail_without_reasons(self, record: AuditRecord) -> str:
        return _pretty(_without_reasons(record.detail))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _without_reasons(detail: Any) -> Any:
    letters = detail.get("letters") if isinstance(detail, dict) else None
    if not isinstance(letters, list):
        return detail
    kept = [
        {name: value for name, value in letter.items() if name != "reason"}
        for letter in letters
        if isinstance(letter, dict)
    ]
    return {**detail, "letters": kept}


def _pretty(detail: Any) -> SafeString:
    text = json.dumps(detail, indent=2, ensure_ascii=False, default=str)
    return format_html("<pre>{}</pre>", visible_json(text))


def register(site: AdminSite) -> None:
    """Mount all pages in an admin site; those of a project's own AdminSite, too."""
    site.register(Overview, OverviewAdmin)
    site.register(Topic, TopicAdmin)
    site.register(Worker, WorkerAdmin)
    site.register(AuditRecord, AuditRecordAdmin)


register(admin.site)
