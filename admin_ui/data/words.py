"""Writes numbers and times in plain text, where markup is not possible."""

from __future__ import annotations

from datetime import datetime

from django.utils import formats, timezone
from django.utils.translation import gettext as _

from bus.moments import BEYOND
from bus.observe.loss import LastLoss


def grouped(number: int) -> str:
    """Return 1,204, as the language of the request writes it."""
    return str(formats.number_format(number, force_grouping=True))


def lost(surely: int, maybe: int) -> str:
    """Return how many messages were lost: "5"; "2 to 5" or "up to 5" where only a limit is known."""
    words = {"least": grouped(surely), "most": grouped(surely + maybe)}
    if not maybe:
        return words["most"]
    return _("%(least)s to %(most)s") % words if surely else _("up to %(most)s") % words


def last_lost(last: LastLoss) -> str:
    """Return the same of those that were found last."""
    return lost(last.count - last.maybe, last.maybe)


def time(moment: datetime) -> str:
    """Return a point in time in the zone of the request, to the second, with the zone."""
    if moment >= BEYOND:
        return _("time out of range")
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S %Z}"
