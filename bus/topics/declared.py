"""The topics that code declares, in one process."""

from __future__ import annotations

import threading

from bus.errors import ConfigurationError
from bus.values import TopicSpec, check_new_name


class Declared:
    """The topics that code declares. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._specs: dict[str, TopicSpec] = {}

    def add(self, spec: TopicSpec) -> None:
        """Add a topic. Raises ConfigurationError if it is declared otherwise, or named `.` or `..`."""
        check_new_name("Topic", spec.name)
        with self._lock:
            declared = self._specs.setdefault(spec.name, spec)
        if declared != spec:
            raise ConfigurationError(
                f"Topic {spec.name!r} is declared twice and differently: {declared} and {spec}. Keep one."
            )

    def get(self, name: str) -> TopicSpec | None:
        """Return the spec of a topic; None if code does not declare it."""
        return self._specs.get(name)

    def specs(self) -> dict[str, TopicSpec]:
        """Return all declared topics, by name."""
        return dict(self._specs)


#: The topics that the code of this process declares, whatever bus or server it uses.
by_code = Declared()
