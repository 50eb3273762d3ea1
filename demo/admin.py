"""The demo's tables in the admin, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from demo.models import Movement, PurchaseOrder, Revenue

# Django's class takes a type parameter for the type checker alone.
if TYPE_CHECKING:
    from django.db.models import Model

    _ModelAdmin = admin.ModelAdmin[Model]
else:
    _ModelAdmin = admin.ModelAdmin


class ReadOnlyAdmin(_ModelAdmin):
    """Rows that only the handlers write."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest, *context: Any) -> bool:  # noqa: ARG002 - as Django asks
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - ditto
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - ditto
        return False


@admin.register(Movement)
class MovementAdmin(ReadOnlyAdmin):
    list_display = ["product", "change", "stock", "partition", "message_id", "origin"]
    search_fields = ["product"]
    ordering = ["-id"]


@admin.register(PurchaseOrder)
class PurchaseOrderAdmin(ReadOnlyAdmin):
    list_display = ["product", "stock", "partition", "message_id", "origin"]
    search_fields = ["product"]
    ordering = ["-id"]


@admin.register(Revenue)
class RevenueAdmin(ReadOnlyAdmin):
    list_display = ["country", "day", "hour", "amount", "lines"]
    list_filter = ["country"]
    ordering = ["-day", "-hour", "country"]
