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
        """Remember a topic. Declaring it again differently is a ConfigurationError, as is `.` or `..`."""
        check_new_name("Topic", spec.name)
        with self._lock:
            known = self._specs.setdefault(spec.name, spec)
        if known != spec:
            raise ConfigurationError(
                f"Topic {spec.name!r} is declared twice and differently: {known} and {spec}. Keep one."
            )

    def get(self, name: str) -> TopicSpec | None:
        return self._specs.get(name)

    def specs(self) -> dict[str, TopicSpec]:
        return dict(self._specs)


#: Those of this process. They belong to the process, not to a bus or a server.
by_code = Declared()
