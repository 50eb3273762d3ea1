"""The entries "Overview" and "Workers" of the admin's list of apps.

The admin lists models. These two stand for pages that have no table, so they live in a registry of
their own (`Meta.apps`): no migration, no content type and no permission is made for them.
"""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import models
from django.utils.translation import gettext_lazy as _

from admin_ui.permissions import APP

_nowhere = Apps()


class Overview(models.Model):
    class Meta:
        apps = _nowhere
        app_label = APP
        managed = False
        default_permissions = ()
        verbose_name = verbose_name_plural = _("overview")

    def __str__(self) -> str:
        return "overview"


class Worker(models.Model):
    class Meta:
        apps = _nowhere
        app_label = APP
        managed = False
        default_permissions = ()
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return "worker"
