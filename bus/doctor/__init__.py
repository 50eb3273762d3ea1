"""Checks whether the server is safe to keep messages on, and whether everything is there. Reads only."""

from __future__ import annotations

from bus.client import Bus
from bus.doctor import delayed, foreign, groups, lanes, orderings, partitions, rights, server
from bus.doctor.finding import Finding, Level
from bus.errors import BusError, Forbidden
from bus.observe import take_survey

__all__ = ["Finding", "Level", "examine"]


def examine(bus: Bus) -> list[Finding]:
    """Return all findings, good ones too, in a fixed order. An unreachable server is a finding, no error."""
    findings: list[Finding] = []
    try:
        answers = server.ask(bus)
        findings.append(Finding("ok", "reachable", f"{bus.endpoint.safe_url} answers."))
        findings += server.findings(answers)
        findings += rights.examine(bus)
        if answers.readable:
            survey = take_survey(bus)
            findings += partitions.examine(bus, survey)
            findings += delayed.examine(bus, survey)
            findings += groups.examine(bus, survey)
            findings += orderings.examine(survey)
            findings += foreign.examine(bus, survey)
            findings += lanes.examine(bus, survey)
    except Forbidden as error:
        findings.append(Finding("error", "rights", str(error), rights.HINT))
    except BusError as error:
        hint = "Check the URL (BUS['URL'] or BUS_URL), that the server runs, and its user and password."
        findings.append(Finding("error", "reachable", str(error), hint))
    return findings
