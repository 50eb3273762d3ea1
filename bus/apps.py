"""The Django app `bus`: topics and messages."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate


class BusConfig(AppConfig):
    name = "bus"
    label = "jitney"
    verbose_name = "Jitney"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.conf import settings

        from bus import autodiscover, testrun
        from bus.checks import check_handlers, check_packages, check_setting, check_vendors
        from bus.operating import declarations

        testrun.sign()  # marks what this process starts, if it runs tests
        checks.register(check_setting, "jitney")
        checks.register(check_packages, "jitney")
        checks.register(check_handlers, "jitney")
        checks.register(check_vendors, "jitney")
        _mask(getattr(settings, "BUS", None))
        setting_changed.connect(_follow_setting, dispatch_uid="jitney.setting")
        post_migrate.connect(declarations.sync_after_migrate, sender=self, dispatch_uid="jitney.sync")
        autodiscover.topics()


def _follow_setting(*, setting: str, value: Any = None, **_signal: Any) -> None:
    """Make `override_settings(BUS=…)` take effect at the next use of the default bus."""
    if setting == "BUS":
        from bus import default

        _mask(value)
        default.reset()


def _mask(setting: Any) -> None:
    """Hide the passwords where the setting itself is shown.

    Django's debug page and its mails to ADMINS hide settings by their names, and show the value of "URL".
    The values stay the texts that they are; only their repr changes.
    """
    if isinstance(setting, dict):
        from bus.conf import masking

        setting.update(masking(setting))
