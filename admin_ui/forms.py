"""Forms of topics."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from bus import default
from bus.durations import parse_duration, short
from bus.errors import BusError, ConfigurationError
from bus.models import Topic
from bus.operating import operate
from bus.operating.audit import Actor

# Django's forms take a type parameter for the type checker alone.
if TYPE_CHECKING:
    _TopicModelForm = forms.ModelForm[Topic]
else:
    _TopicModelForm = forms.ModelForm


class RetentionField(forms.CharField):
    """A duration such as 90s, 12h or 7d; empty means for ever."""

    def prepare_value(self, value: Any) -> Any:
        return short(value) if isinstance(value, timedelta) else value

    def clean(self, value: Any) -> timedelta | None:
        text = super().clean(value)
        try:
            return parse_duration(text or None)
        except ConfigurationError as error:
            raise ValidationError(str(error), code="invalid") from error

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(initial != parse_duration(data or None))
        except ConfigurationError:
            return True


class TopicForm(_TopicModelForm):
    """Adds or changes a topic through bus.operating.operate, which checks, stores, projects and audits."""

    retention = RetentionField(
        required=False,
        help_text=_(
            "How long messages are kept once every group has settled them, such as 90s, 12h or 7d. "
            "Empty: for ever."
        ),
    )

    actor: Actor
    """Set by the ModelAdmin for each request."""

    class Meta:
        model = Topic
        fields = ["name", "partitions", "retention", "notes"]
        widgets = {"notes": forms.Textarea(attrs={"rows": 3})}

    def full_clean(self) -> None:
        """Validate; if all is right, store.

        Storing is the last check: Redis may be away or know more partitions. A refusal thus becomes an
        error of the form, with all input kept, and the audit record of it is not rolled back.
        """
        super().full_clean()
        if self.is_bound and not self.errors and self.has_changed():
            self._store()

    def _store(self) -> None:
        try:
            operate.save_topic(default.get(), self.instance, actor=self.actor)
        except BusError as error:
            self.add_error(None, str(error))
        except ValidationError as error:
            self.add_error(None, ValidationError(error.messages))


class DeleteTopicForm(forms.Form):
    """The name of the topic, typed once more."""

    confirm = forms.CharField(
        label=_("Name of the topic"),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
