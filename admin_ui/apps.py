"""The Django app that adds Jitney's pages to the admin."""

from django.apps import AppConfig


class AdminUIConfig(AppConfig):
    """Brings templates, static files and `admin.py`; it has no tables of its own."""

    name = "admin_ui"
    label = "jitney_admin"
    verbose_name = "Jitney admin"
