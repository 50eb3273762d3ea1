"""The project's settings with the app under test in place of the demo."""

import json
import os

from config.settings import *  # noqa: F403
from config.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [app for app in _APPS if app != "demo"] + ["tests.acceptance.shop"]

#: Further settings, which a test gives its workers as JSON.
globals().update(json.loads(os.environ.get("SHOP_SETTINGS", "{}")))
