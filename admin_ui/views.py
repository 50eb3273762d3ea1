"""The pages, GET only. Each checks a permission, describes its frame and names what it reads."""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from admin_ui import letters, permissions
from admin_ui.data import queries
from admin_ui.data.rows import GroupRows, OutboxRow, TopicRows, TopicsRows
from admin_ui.letters import LetterRows
from admin_ui.live import Frame, PageLink, respond
from bus import default
from bus.client import Bus
from bus.errors import ConfigurationError
from bus.models import Topic


@require_safe
def overview(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Counters, the server, groups with problems first, drift of declarations."""
    permissions.require(request, permissions.VIEW)
    frame = Frame(
        title=_("Overview"),
        fragment="admin_ui/_overview.html",
        crumbs=[PageLink(_("Overview"))],
        tabs=sections(request, site, "overview"),
    )

    # The outbox is not among what is read from Redis: the less Redis answers, the more it matters.
    return respond(request, site, frame, queries.overview, outbox=_outbox())


@require_safe
def topics(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """All topics: searched, sorted, paged."""
    permissions.require(request, permissions.VIEW)
    frame = Frame(
        title=_("Topics"),
        fragment="admin_ui/_topics.html",
        crumbs=[PageLink(_("Topics"))],
        tabs=sections(request, site, "topics"),
        tools="admin_ui/_search.html",
    )
    chosen = request.GET
    search, order = chosen.get("q", "").strip(), chosen.get("o", "name")

    def read(bus: Bus) -> TopicsRows:
        return queries.topics(bus, search=search, order=order, page=chosen.get("p"))

    may_add = request.user.has_perm("jitney.add_topic")
    return respond(request, site, frame, read, search=search, order=order, may_add=may_add)


@require_safe
def topic(request: HttpRequest, site: AdminSite, name: str) -> HttpResponse:
    """One topic: its groups and partitions."""
    permissions.require(request, permissions.VIEW)
    frame = Frame(
        title=name,
        fragment="admin_ui/_topic.html",
        crumbs=[topics_link(site), PageLink(name)],
        tabs=topic_tabs(request, site, name, "topic"),
    )
    chosen = request.GET

    def read(bus: Bus) -> TopicRows:
        return queries.topic(bus, name, page=chosen.get("p"), groups=chosen.get("g"))

    return respond(request, site, frame, read)


@require_safe
def messages(request: HttpRequest, site: AdminSite, name: str) -> HttpResponse:
    """The latest messages of a topic; needs the permission to read them."""
    permissions.require(request, permissions.VIEW)
    permissions.require(request, permissions.PEEK)
    frame = Frame(
        title=name,
        fragment="admin_ui/_messages.html",
        crumbs=[topics_link(site), topic_link(site, name), PageLink(_("Messages"))],
        tabs=topic_tabs(request, site, name, "messages"),
    )
    return respond(request, site, frame, lambda bus: queries.messages(bus, name))


@require_safe
def group(request: HttpRequest, site: AdminSite, name: str, group_name: str) -> HttpResponse:
    """One group of a topic: how far it is in every partition, and who serves it."""
    permissions.require(request, permissions.VIEW)
    frame = Frame(
        title=group_name,
        subtitle=_("Group of the topic"),
        fragment="admin_ui/_group.html",
        crumbs=[topics_link(site), topic_link(site, name), PageLink(group_name)],
        tabs=topic_tabs(request, site, name, ""),
        tools="admin_ui/_verbs.html",
    )

    def read(bus: Bus) -> GroupRows:
        return queries.group(bus, name, group_name, page=request.GET.get("p"))

    return respond(
        request,
        site,
        frame,
        read,
        topic_name=name,
        group_name=group_name,
        may_manage=permissions.may(request, permissions.MANAGE_GROUPS),
    )


@require_safe
def dead_letters(request: HttpRequest, site: AdminSite, name: str, group_name: str) -> HttpResponse:
    """The dead letters of a group, newest first: searched, paged."""
    permissions.require(request, permissions.VIEW)
    if letters.needs_peek(request.GET):
        permissions.require(request, permissions.PEEK)
    if "search" in request.GET:  # the form: from here on an empty value is a mistake of somebody else
        query, page = letters.without_empty(request.GET), _url(site, "group_dead", name, group_name)
        return HttpResponseRedirect(f"{page}?{query}" if query else page)
    frame = Frame(
        title=_("Dead letters of %(group)s") % {"group": group_name},
        subtitle=_("Group of the topic"),
        fragment="admin_ui/_letters.html",
        crumbs=[*group_crumbs(site, name, group_name), PageLink(_("Dead letters"))],
        tabs=topic_tabs(request, site, name, ""),
        tools="admin_ui/_letter_search.html",
    )

    def read(bus: Bus) -> LetterRows:
        return letters.letters(bus, name, group_name, letters.searched(request.GET))

    chosen = {field: request.GET.get(field, "") for field in letters.FILTERS}
    return respond(
        request,
        site,
        frame,
        read,
        topic_name=name,
        group_name=group_name,
        chosen=chosen,
        is_filtered="id" in request.GET or any(chosen.values()),
        may_peek=permissions.may(request, permissions.PEEK),
        may_retry=permissions.may(request, permissions.RETRY_DEAD),
        may_discard=permissions.may(request, permissions.DISCARD_DEAD),
    )


@require_safe
def workers(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """The workers that are alive."""
    permissions.require(request, permissions.VIEW)
    frame = Frame(
        title=_("Workers"),
        fragment="admin_ui/_workers.html",
        crumbs=[PageLink(_("Workers"))],
        tabs=sections(request, site, "workers"),
    )
    return respond(request, site, frame, lambda bus: queries.workers(bus, page=request.GET.get("p")))


def sections(request: HttpRequest, site: AdminSite, current: str) -> list[PageLink]:
    """Return the tabs of the pages that belong to no topic."""
    tabs = [
        PageLink(_("Overview"), _url(site, "overview_changelist"), current == "overview"),
        PageLink(_("Topics"), _url(site, "topic_changelist"), current == "topics"),
        PageLink(_("Workers"), _url(site, "worker_changelist"), current == "workers"),
    ]
    if permissions.may(request, permissions.AUDIT):
        tabs.append(PageLink(_("Audit"), _url(site, "auditrecord_changelist")))
    return tabs


def topic_tabs(request: HttpRequest, site: AdminSite, name: str, current: str) -> list[PageLink]:
    """Return the tabs of one topic; those that the user may not open, or that do not exist, are left out."""
    tabs = [PageLink(_("Groups and partitions"), _url(site, "topic_page", name), current == "topic")]
    if permissions.may(request, permissions.PEEK):
        tabs.append(PageLink(_("Messages"), _url(site, "topic_messages", name), current == "messages"))
    row = Topic.objects.filter(name=name).only("pk").first()
    if row is not None:
        tabs.append(PageLink(_("Settings"), _url(site, "topic_change", str(row.pk)), current == "settings"))
    return tabs


def topics_link(site: AdminSite) -> PageLink:
    return PageLink(_("Topics"), _url(site, "topic_changelist"))


def topic_link(site: AdminSite, name: str) -> PageLink:
    return PageLink(name, _url(site, "topic_page", name))


def group_crumbs(site: AdminSite, name: str, group_name: str) -> list[PageLink]:
    """Return the breadcrumbs to a page below the page of a group."""
    return [
        topics_link(site),
        topic_link(site, name),
        PageLink(group_name, _url(site, "group_page", name, group_name)),
    ]


def _url(site: AdminSite, page: str, *args: str) -> str:
    return reverse(f"admin:{permissions.APP}_{page}", args=args, current_app=site.name)


def _outbox() -> OutboxRow | None:
    try:
        return queries.outbox(default.get())
    except ConfigurationError:
        return None  # the page tells of it
