"""The verdict in words."""

from __future__ import annotations

from collections import Counter

from tests.chaos.judge import Verdict

#: Examples of what is wrong that are shown.
EXAMPLES = 5


def report(verdict: Verdict) -> str:
    """Several lines; the last says it all."""
    lines = [
        f"published             {verdict.published:>8,}",
        f"  lost by the server  {verdict.vanished:>8,}  (it came back with older data)",
        f"handled, by all groups{verdict.handled:>8,}",
        f"lost                  {len(verdict.lost):>8,}",
        f"unexpected            {len(verdict.unexpected):>8,}",
        f"order violations      {len(verdict.disorder):>8,}",
        f"duplicates            {len(verdict.repeats):>8,}  by {_counts(verdict.explained)}",
        f"  without a fault     {len(verdict.unexplained):>8,}",
        f"effects in the database: missing {len(verdict.unbooked):,}, twice {len(verdict.booked_twice):,}",
    ]
    for left in verdict.leftovers:
        lines.append(f"group {left.group:<15} lag {left.lag}, pending {left.pending}, "
                     f"retrying {left.retrying}, held {left.held}, dead {left.dead}")  # fmt: skip
    lines.append(f"faults                {len(verdict.faults):>8,}  {_counts(verdict.kinds)}")
    if verdict.longest is not None:
        fault, seconds = verdict.longest
        lines.append(f"longest recovery      {seconds:8.1f} s (after {fault.kind})")
    if verdict.orphans:
        orphan = verdict.orphans[0]
        lines.append(f"longest without owner {orphan.seconds:8.1f} s (lane {orphan.lane})")
    return "\n".join([*lines, *_examples(verdict), _last(verdict)])


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"


def _examples(verdict: Verdict) -> list[str]:
    lines = [f"  lost in {group}: {message}" for group, message in verdict.lost[:EXAMPLES]]
    lines += [f"  effect missing: {place}" for place in verdict.unbooked[:EXAMPLES]]
    lines += [f"  effect twice: {place}" for place in verdict.booked_twice[:EXAMPLES]]
    lines += [f"  nobody owns: {lane}" for lane in verdict.ownerless[:EXAMPLES]]
    lines += [f"  nothing was handled during: {fault}" for fault in verdict.silent]
    lines += [f"  unexpected: {entry}" for entry in verdict.unexpected[:EXAMPLES]]
    lines += [f"  out of order: {text}" for text in verdict.disorder[:EXAMPLES]]
    for repeat in verdict.unexplained[:EXAMPLES]:
        lines += [f"  repeated: {repeat.again}", *(f"    after: {entry}" for entry in repeat.before)]
    return lines


def _last(verdict: Verdict) -> str:
    faults = len(verdict.faults)
    if verdict.wrong:
        return f"chaos FAILED after {faults} faults: {'; '.join(verdict.wrong)}"
    return (
        f"chaos passed: {verdict.published:,} messages, {faults} faults, nothing lost, nothing out of order"
    )
