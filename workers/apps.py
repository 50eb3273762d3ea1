"""The Django app `workers`: Celery workers as consumers."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.core import checks


class WorkersConfig(AppConfig):
    name = "workers"
    label = "jitney_workers"
    verbose_name = "Jitney workers"

    def ready(self) -> None:
        checks.register(check_bus, "jitney")


def check_bus(**_: Any) -> list[checks.CheckMessage]:
    """Check that the app `bus` is installed, and not hidden by another package of that name."""
    if apps.is_installed("bus") and "jitney" in apps.app_configs:
        return []
    return [
        checks.Error(
            "The app 'workers' needs Jitney's app 'bus'.",
            hint="Add 'bus' to INSTALLED_APPS. If it is there, another package of that name hides Jitney's.",
            id="jitney.E003",
        )
    ]
