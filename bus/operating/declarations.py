"""Keeps topics alike in three places: declared in code, stored in the database, projected to Redis.

Code decides about the topics that it declares, the database about all others, and Redis follows both.
Where the three differ there is drift: it is shown, `sync` mends it, and it is never an error at start.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, connections, router, transaction

from bus import default, testrun
from bus.durations import words
from bus.errors import BusError, ConfigurationError, ForeignData, ReadOnly
from bus.safety.unreadable import SHOWN, visible
from bus.safety.verbs import check_writable
from bus.topics import rows
from bus.values import TopicSpec

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.records import Look
    from bus.models import Topic

logger = logging.getLogger("bus.declarations")


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference between the three places, in words."""

    topic: str
    text: str
    mended_by_sync: bool


@dataclass(slots=True, kw_only=True)
class SyncReport:
    """What `sync` did. All are names of topics, except `problems`, which are sentences."""

    created: list[str] = field(default_factory=list)
    """New rows, for topics that code declares."""
    changed: list[str] = field(default_factory=list)
    """Rows that now say what code says."""
    projected: list[str] = field(default_factory=list)
    """Topics that Redis did not have, or had differently."""
    problems: list[str] = field(default_factory=list)


def sync(bus: Bus | None = None) -> SyncReport:
    """Make rows of the topics that code declares, and project all rows to Redis.

    What cannot be done (such as fewer partitions) is reported among `problems` and left as it is.
    Raises BusError if Redis cannot be used, with the rows written all the same; ReadOnly, with nothing done.
    """
    bus = bus or default.get()
    check_writable(bus, "topic sync")
    report = SyncReport()
    _write_rows(bus, report)
    _project(bus, report)
    return report


def drift(bus: Bus | None = None, look: Look | None = None) -> list[Drift]:
    """Return how code, rows and Redis differ, by topic. Raises BusError if Redis cannot be read.

    `look`: what Redis has, if the caller has looked already.
    """
    bus = bus or default.get()
    declared = bus.declared.specs()
    in_database = {row.name: row for row in rows.every()}
    look = look or bus.registry.look()
    strange = {record.field: record for record in look.unreadable if record.key == bus.keys.topics}
    drifts: list[Drift] = []
    for name in sorted(declared.keys() | in_database.keys() | look.specs.keys() | strange.keys()):
        if name in strange:
            mendable = name in declared.keys() | in_database.keys() and not strange[name].newer
            shown = visible(name[:SHOWN])  # it may be the name of nothing, and of any text
            drifts.append(Drift(shown, f"its record in Redis {strange[name].why}", mendable))
        elif "" not in strange:  # else nothing is known of what Redis has
            drifts += _drift_of(name, declared.get(name), in_database.get(name), look.specs.get(name))
    return drifts


def sync_after_migrate(*, using: str = DEFAULT_DB_ALIAS, verbosity: int = 1, **_signal: Any) -> None:
    """Do `sync` when post_migrate is sent, with a warning and no error if Redis is away.

    Does nothing for a test database, which must not reach the Redis of the project, and nothing where there
    is no table of topics.
    """
    if testrun.is_test_database(using):
        if testrun.sign() is not None:
            default.reset()  # what used the bus before the tests began, used that of the project
        return
    if not router.allow_migrate_model(using, rows.model()) or not _has_table(using):
        return
    try:
        report = sync()
    except ReadOnly:
        logger.info("Topics are not projected to Redis: READ_ONLY is set.")
        return
    except BusError as error:
        logger.warning("Topics were not projected to Redis: %s Run `manage.py bus topic sync` later.", error)
        return
    for problem in report.problems:
        logger.warning("%s", problem)
    if verbosity >= 2 and report.projected:
        logger.info("Topics projected to Redis: %s", ", ".join(report.projected))


def _has_table(alias: str) -> bool:
    connection = connections[alias]
    return rows.model()._meta.db_table in connection.introspection.table_names()


def _write_rows(bus: Bus, report: SyncReport) -> None:
    model = rows.model()
    for name, spec in sorted(bus.declared.specs().items()):
        with transaction.atomic(using=router.db_for_write(model)):
            row, fresh = model._default_manager.select_for_update().get_or_create(
                name=name,
                defaults={
                    "partitions": spec.partitions,
                    "retention": spec.retention,
                    "origin": model.Origin.CODE,
                },
            )
            if fresh:
                report.created.append(name)
            else:
                _follow_code(row, spec, report)


def _follow_code(row: Topic, spec: TopicSpec, report: SyncReport) -> None:
    settings: dict[str, Any] = {"retention": spec.retention, "origin": row.Origin.CODE.value}
    if spec.partitions >= row.partitions:
        settings["partitions"] = spec.partitions
    else:
        report.problems.append(
            f"Topic {row.name!r}: code declares {spec.partitions} partitions, but it has {row.partitions} "
            "and cannot shrink. Declare that many, or make a new topic."
        )
    if any(getattr(row, name) != value for name, value in settings.items()):
        for name, value in settings.items():
            setattr(row, name, value)
        row.save()
        report.changed.append(row.name)


def _project(bus: Bus, report: SyncReport) -> None:
    projected = bus.registry.specs()
    specs: list[TopicSpec] = []
    for row in rows.every():
        before = projected.get(row.name)
        if before is not None and before.partitions > row.partitions:
            report.problems.append(
                f"Topic {row.name!r}: the database says {row.partitions} partitions, but Redis has "
                f"{before.partitions} and cannot shrink."
            )
            continue
        specs.append(row.spec)
        if before != row.spec:
            report.projected.append(row.name)
    # All of them, not only those that differ: this also makes streams again that Redis has lost.
    try:
        bus.registry.project(specs)
    except ForeignData as error:
        report.problems.append(str(error))  # all else is done
    except ConfigurationError:
        for spec in specs:  # one of them is at fault, and nothing is done: the others are, alone
            _project_one(bus, spec, report)


def _project_one(bus: Bus, spec: TopicSpec, report: SyncReport) -> None:
    try:
        bus.registry.project([spec])
    except (ConfigurationError, ForeignData) as error:
        report.problems.append(f"Topic {spec.name!r}: {error}")


def _drift_of(
    name: str, declared: TopicSpec | None, row: Topic | None, projected: TopicSpec | None
) -> list[Drift]:
    drifts: list[Drift] = []
    if declared is not None and row is None:
        drifts.append(Drift(name, "code declares it, the database does not have it", True))
    if declared is not None and row is not None:
        drifts += _differences(name, "code", declared, "the database", row.spec)
    if declared is None and row is not None and row.origin == row.Origin.CODE:
        drifts.append(Drift(name, "code declared it once and does so no longer; it can be deleted", False))
    if row is not None and projected is None:
        drifts.append(Drift(name, "the database has it, Redis does not", True))
    if row is not None and projected is not None:
        drifts += _differences(name, "the database", row.spec, "Redis", projected)
    if row is None and declared is None and projected is not None:
        drifts.append(Drift(name, "Redis has it, neither code nor the database does", False))
    return drifts


def _differences(name: str, first: str, a: TopicSpec, second: str, b: TopicSpec) -> list[Drift]:
    """Return what two places say differently. The second follows the first, but partitions never shrink."""
    drifts: list[Drift] = []
    if a.partitions != b.partitions:
        text = f"{first} says {a.partitions} partitions, {second} {b.partitions}"
        drifts.append(Drift(name, text, a.partitions > b.partitions))
    if a.retention != b.retention:
        text = f"{first} says retention {_words(a.retention)}, {second} {_words(b.retention)}"
        drifts.append(Drift(name, text, True))
    return drifts


def _words(retention: timedelta | None) -> str:
    return words(retention) if retention is not None else "for ever"
