"""Judges a group in one word, from one snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from admin_ui.data import words
from bus.observe import GroupSnapshot

Tone = Literal["bad", "warn", "quiet", "busy", "ok"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word for a badge, how urgent it is, and a sentence that explains it."""

    word: str | Promise
    tone: Tone
    why: str | Promise

    @property
    def problem(self) -> bool:
        return self.tone in ("bad", "warn")


NO_WORKERS = Verdict(
    _("no workers"),
    "bad",
    _("Messages wait, and no running worker serves this group. If its handler is gone, delete the group."),
)
MISSING = Verdict(_("missing"), "bad", _("Redis does not have this group in some partitions."))
LOST = Verdict(
    _("lost messages"), "bad", _("Messages were removed from Redis before this group was given them.")
)
UNHELD = Verdict(
    _("no owner"),
    "bad",
    _("Partitions have had no owner for 10 s or more, though workers serve this group; see their logs."),
)
HELD_BACK = Verdict(
    _("held back"),
    "warn",
    _("Messages wait behind a failing message of the same key; at the held limit, fetching stops."),
)
DEAD = Verdict(_("dead letters"), "warn", _("Messages were given up; an operator must decide about them."))
RETRYING = Verdict(_("retrying"), "warn", _("Messages failed and will be tried again."))
UNKNOWN = Verdict(_("unknown"), "warn", _("The server cannot tell how far behind this group is."))
PAUSED = Verdict(_("paused"), "quiet", _("An operator paused this group; its messages wait."))
BEHIND = Verdict(_("catching up"), "busy", _("There are messages that this group has not been given yet."))
WORKING = Verdict(_("working"), "busy", _("All messages are given; some are not settled yet."))
OK = Verdict(_("OK"), "ok", _("Every message is given and settled."))

_URGENCY: dict[str, int] = {"bad": 0, "warn": 1, "quiet": 2, "busy": 3, "ok": 4}


def verdict(group: GroupSnapshot, workers: int) -> Verdict:
    """Return the most urgent thing that is true of a group, which so many living workers serve."""
    waiting = bool((group.lag and group.lag.count) or group.pending)
    if group.missing_partitions:
        return MISSING
    if group.paused:
        return PAUSED
    if waiting and not workers:
        return NO_WORKERS
    if group.unheld_partitions and workers:
        return UNHELD
    if group.lag is None or group.pending is None:
        return UNKNOWN
    if group.lost_lately:
        return _lost(group)
    if group.held:
        return HELD_BACK
    if group.retrying:
        return RETRYING
    if group.dead:
        return DEAD
    if group.lag.count:
        return BEHIND
    return WORKING if group.pending else OK


def _lost(group: GroupSnapshot) -> Verdict:
    last = group.lost_last
    if last is None:
        return LOST
    place = {
        "partition": group.lost_last_partition,
        "count": words.last_lost(last),
        "after": last.after,
        "before": last.before,
        "when": words.time(last.found),
    }
    why = gettext(
        "Messages were removed from Redis before this group was given them; last in partition %(partition)s: "
        "%(count)s after %(after)s and up to %(before)s, found %(when)s."
    )
    return replace(LOST, why=why % place)


def urgency(group: GroupSnapshot, verdict: Verdict) -> tuple[int, int, str, str]:
    """Return a sort key: problems first, then the greatest lag, then by name."""
    lag = group.lag.count if group.lag else 0
    return _URGENCY[verdict.tone], -lag, group.topic, group.group
