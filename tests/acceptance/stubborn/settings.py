"""The project's settings with this app in place of the demo, and a held limit that a test can reach."""

from config.settings import *  # noqa: F403
from config.settings import BUS as _BUS
from config.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [app for app in _APPS if app != "demo"] + ["tests.acceptance.stubborn"]

BUS = {**_BUS, "HELD_LIMIT": 300}
