"""The default bus of this process: the `BUS` setting of Django, or `BUS_URL` where there is no Django.

It is made at first use, and made anew when the `BUS` setting changes, so `override_settings` works. The
topics and handlers that code declares belong to the process, not to a server, and stay. In a test run it is
the bus of the tests, if they have one, never that of the project (see `bus.testrun`).
"""

from __future__ import annotations

import os
import threading
from typing import Any

from bus import testrun
from bus.client import Bus
from bus.consuming.subscriptions import Subscriptions
from bus.publishing.producer import Producer
from bus.topics import declared

subscriptions = Subscriptions()

_lock = threading.RLock()
_current: list[Bus] = []


def get() -> Bus:
    """Return the default bus.

    Raises ConfigurationError if neither BUS nor BUS_URL says where Redis is, and in a test run without a bus
    of its own.
    """
    if not _current:
        with _lock:
            if not _current:
                _current.append(_make())
    return _current[0]


def reset(**_signal: Any) -> None:
    """Close and forget the default bus. The next use makes it anew, from the settings of that moment."""
    with _lock:
        for bus in _current:
            bus.close()
        _current.clear()


Producer.default_bus = staticmethod(get)


def _make() -> Bus:
    if not _in_django():
        return Bus(testrun.from_environment(), declared=declared.by_code)
    from django.conf import settings

    from bus.topics import rows

    # Django turns DEBUG off in tests.
    autostart = bool(settings.DEBUG) or testrun.sign() is not None
    bus = Bus(testrun.from_django(), autostart=autostart, declared=declared.by_code)
    bus.registry.find_elsewhere = rows.find
    return bus


def _in_django() -> bool:
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        return True
    try:
        from django.conf import settings
    except ModuleNotFoundError:
        return False
    return bool(settings.configured)
