"""The project's settings with the fleet in place of the demo."""

from config.settings import *  # noqa: F403
from config.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [app for app in _APPS if app != "demo"] + ["tests.acceptance.fleet"]
