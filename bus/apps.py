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
        from bus import autodiscover, declarations
        from bus.checks import check_databases, check_places, check_setting, check_vendors

        checks.register(check_setting, "jitney")
        checks.register(check_places, "jitney")
        checks.register(check_databases, "jitney")
        checks.register(check_vendors, "jitney")
        setting_changed.connect(_follow_setting, dispatch_uid="jitney.setting")
        post_migrate.connect(declarations.sync_after_migrate, sender=self, dispatch_uid="jitney.sync")
        autodiscover.topics()


def _follow_setting(*, setting: str, **_signal: Any) -> None:
    """`override_settings(BUS=…)` takes effect at the next use of the default bus."""
    if setting == "BUS":
        from bus import default

        default.reset()
