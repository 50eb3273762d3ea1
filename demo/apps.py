"""The Django app `demo`: order processing feeds inventory maintenance."""

from django.apps import AppConfig


class DemoConfig(AppConfig):
    name = "demo"
    label = "demo"
    verbose_name = "Demo: orders and stock"
    default_auto_field = "django.db.models.BigAutoField"
