"""Masks passwords of URLs in Django's reports of errors: for DEFAULT_EXCEPTION_REPORTER_FILTER."""

from __future__ import annotations

import re
from collections.abc import ItemsView
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

#: Django cuts what is longer before it shows it; of a great text only so much is looked at.
_LONGEST = 10_000

#: `user:password@` of any URL, and the options of one that hold a password. What is not escaped may hold
#: anything but a space, so this goes to the last @.
_LOGIN = re.compile(r"(?<=://)[^\s@]*:\S*(?=@)")
_OPTION = re.compile(r"(?<=[?&])(\w*password)=[^&\s'\"]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return the text, with the passwords of all URLs in it masked."""
    return _OPTION.sub(r"\1=***", _LOGIN.sub("***:***", text[:_LONGEST]))


class ReporterFilter(SafeExceptionReporterFilter):
    """Masks passwords in values as well, where Django goes by names alone: `BUS_URL`, `CELERY_BROKER_URL`."""

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """Mask a setting, or something of a request, which `runserver` adds the environment to."""
        cleansed = super().cleanse_setting(key, value)
        return without_passwords(cleansed) if isinstance(cleansed, str) else cleansed

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: Any
    ) -> ItemsView[str, Any]:
        """Mask the variables of a frame that a report shows."""
        variables = dict(super().get_traceback_frame_variables(request, tb_frame))
        return {
            name: without_passwords(value) if isinstance(value, str) else value
            for name, value in variables.items()
        }.items()
