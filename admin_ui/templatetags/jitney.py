"""Writes numbers, durations and times. Unknown (None) is always a dash, never 0."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

from admin_ui.data import words
from admin_ui.data.words import grouped
from bus import durations
from bus.format.display import size_of
from bus.moments import BEYOND
from bus.observe import GroupSnapshot, Lag
from bus.observe.loss import LastLoss
from bus.safety import unreadable

register = template.Library()

#: Nothing is worth less ink than something.
ZERO = mark_safe('<span class="jt-zero">0</span>')


def unknown() -> SafeString:
    """Return a dash that says what it means to pointers and to screen readers."""
    return format_html(
        '<span class="jt-unknown" title="{0}"><span aria-hidden="true">—</span>'
        '<span class="jt-hidden">{0}</span></span>',
        _("unknown"),
    )


@register.filter
def amount(value: int | Lag | None) -> str:
    """Write a count: 1,204 · ≥ 1,204 where counting was cut short · — where it is unknown."""
    if value is None:
        return unknown()
    lag = value if isinstance(value, Lag) else Lag(value)
    if lag.exact:
        return grouped(lag.count) if lag.count else ZERO
    title = _("at least %(count)s: it could not be counted to the end") % {"count": grouped(lag.count)}
    return format_html('<span title="{}">≥&nbsp;{}</span>', title, grouped(lag.count))


@register.filter
def lost(group: GroupSnapshot) -> str:
    """Write how many messages a group has lost; "up to 5", "2 to 5" where only a limit is known."""
    return words.lost(group.lost or 0, group.lost_maybe or 0)


@register.filter
def last_lost(last: LastLoss) -> str:
    """Write the same of the losses that were found last."""
    return words.last_lost(last)


@register.filter
def some(value: int | Lag | None) -> bool:
    """Return whether there is at least one, or it is unknown: then it is worth a look."""
    return value is None or bool(value.count if isinstance(value, Lag) else value)


@register.filter
def duration(value: timedelta | None) -> str:
    """Write a duration as 3m 12s, with the seconds as its title."""
    if value is None:
        return unknown()
    exact = f"{value.total_seconds():.3f} s"
    return format_html('<span title="{}">{}</span>', exact, durations.words(value))


@register.filter
def size(value: int | None) -> str:
    """Write bytes in binary units, with the exact number as the title."""
    if value is None:
        return unknown()
    number, unit = size_of(value)
    return format_html('<span title="{} {}">{}&nbsp;{}</span>', grouped(value), _("bytes"), number, unit)


@register.filter
def when(value: datetime | None) -> str:
    """Write a time in the zone of the request, to the second; milliseconds and zone in the title."""
    if value is None:
        return unknown()
    if value >= BEYOND:
        return format_html('<span class="jt-quiet">{}</span>', _("time out of range"))
    local = timezone.localtime(value)
    title = f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d} {local:%Z}"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', local.isoformat(), title, f"{local:%Y-%m-%d %H:%M:%S}"
    )


@register.filter
def visible(value: object) -> str:
    """Write foreign text with bidirectional, invisible and control characters as escapes."""
    return unreadable.visible(str(value))


@register.inclusion_tag("admin_ui/_sort.html", takes_context=True)
def sort_header(context: dict[str, Any], key: str, text: str, kind: str = "") -> dict[str, Any]:
    """Write a column head that sorts by `key`; a second click turns the order."""
    order = context["order"]
    direction = "descending" if order == f"-{key}" else "ascending" if order == key else ""
    first = key if key == "name" else f"-{key}"
    turned = {"ascending": f"-{key}", "descending": key}.get(direction, first)
    return {
        "request": context["request"],
        "text": text,
        "kind": kind,
        "direction": direction,
        "turned": turned,
    }
