"""Who may see and do what. Checked in every view and verb; pages hide what is not allowed, and say why."""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

APP = "jitney"

PEEK = (f"{APP}.peek_messages",)
MANAGE_GROUPS = (f"{APP}.manage_groups",)
RETRY_DEAD = (f"{APP}.retry_dead_letters",)
DISCARD_DEAD = (f"{APP}.discard_dead_letters",)
#: Who may do something may look at the pages where it is done. Values, keys, reasons and errors take PEEK.
VIEW = (
    f"{APP}.view_topic", f"{APP}.change_topic", *PEEK, *MANAGE_GROUPS, *RETRY_DEAD, *DISCARD_DEAD,
)  # fmt: skip
AUDIT = (f"{APP}.view_auditrecord",)


def may(request: HttpRequest, any_of: tuple[str, ...]) -> bool:
    """Return whether the user is active staff and has one of the permissions."""
    user = request.user
    return bool(user.is_active and user.is_staff and any(user.has_perm(permission) for permission in any_of))


def require(request: HttpRequest, any_of: tuple[str, ...]) -> None:
    """Raise PermissionDenied unless the user has one of the permissions."""
    if not may(request, any_of):
        raise PermissionDenied
