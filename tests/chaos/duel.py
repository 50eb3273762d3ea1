"""A run in which two workers certainly meet in one lane: one is frozen with messages in hand, and comes back
while its successor has messages in hand there.

Nothing is left to chance: the run goes on when it sees that the workers are where it wants them. With the
fence the one that comes back does nothing more; without it, it handles what the other has in hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bus.streams.commands import text
from bus.values import id_pair
from tests.chaos.ledger import Ledger, Published, read_handled
from tests.chaos.processes import Worker
from tests.chaos.run import Options, Run
from tests.chaos.shop.fate import Fate, fate
from tests.chaos.shop.grip import GROUP, PREFIX, Grip, Held
from tests.waiting import wait_until

TOPIC, KEY = "keyed", "gripped"
#: Messages in one write.
BURST = 20
#: So many a held worker has in hand at least, beside the one at which it is held.
IN_HAND = 3
#: A worker that takes no more than a few in one turn is let go, and caught again.
ATTEMPTS = 30
#: For each thing that must come: a takeover takes 15 to 20 s. Seconds.
PATIENCE = 90.0


class Duel(Run):
    """Ends by itself; `seconds`, `only` and `interval` of the options mean nothing here."""

    def __init__(self, options: Options, directory: Path, say: Callable[[str], None]) -> None:
        super().__init__(options, directory, say)
        self._grip = Grip(directory / "grip")
        self._burst: list[Published] = []
        """All gripped messages that there are."""
        self._numbers = iter(range(1_000_000))

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "CHAOS_GRIP": str(self._directory / "grip")}

    def _storm(self) -> None:
        first = self._catch()
        stale = self._worker(first)
        fault = self._injector.freeze(stale)
        self._wait(lambda: not self._unsettled(), "a successor to settle what the frozen one had in hand")
        second = self._catch()
        assert second.worker != first.worker
        first.said.unlink()
        self._injector.thaw(stale, fault)
        if self._options.sabotage:
            self._wait(lambda: self._has_ended(stale, second.id), "what another has in hand to be handled")
        else:
            self._wait(lambda: self._has_lost(stale), "the one that comes back to see that its lease is gone")
        second.said.unlink()
        self._wait(lambda: self._has_ended(self._worker(second), second.id), "the successor to go on")

    def _catch(self) -> Held:
        """Have a worker held in the gripped lane with messages in hand."""
        before = self._grip.held()
        for _ in range(ATTEMPTS):
            self._grip.lay()
            self._publish()
            self._wait(lambda: len(self._grip.held()) > len(before), "a worker to be held")
            (held,) = set(self._grip.held()) - set(before)
            in_hand = [id for id in self._pending() if id_pair(id) > id_pair(held.id)]
            if len(in_hand) >= IN_HAND:
                self._say(f"{held.worker} is held at {held.id} with {len(in_hand)} more in hand.")
                return held
            held.said.unlink()
            self._wait(lambda: not self._unsettled(), "the messages to be settled")
        raise AssertionError(f"In {ATTEMPTS} attempts no worker had {IN_HAND} messages in hand.")

    def _publish(self) -> None:
        """In one write, so that one turn fetches several."""
        ledger = Ledger(self._published)
        first = len(self._burst)
        values = [{"id": self._name(), "seq": first + number} for number in range(BURST)]
        receipts = self._bus.publish_iter(TOPIC, values, key=lambda _: KEY)
        for number, (value, receipt) in enumerate(zip(values, receipts, strict=True)):
            place, now = (TOPIC, receipt.partition, receipt.id), time.monotonic_ns()
            message = Published(*place, str(value["id"]), KEY, first + number, now)
            ledger.write(message)
            self._burst.append(message)
        ledger.close()

    def _name(self) -> str:
        """Of a message that nothing happens to, however often it is tried."""
        seed, well = self._options.seed, Fate(seconds=0.0, ending="")
        names = (f"{PREFIX}{number}" for number in self._numbers)
        return next(
            name for name in names if all(fate(seed, GROUP, name, attempt) == well for attempt in range(1, 6))
        )

    # ------------------------------------------------------------------ what is to be seen

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            self._tend()
            return condition()

        wait_until(look, PATIENCE, what)

    def _worker(self, held: Held) -> Worker:
        return next(worker for worker in self._fleet.workers if worker.name == held.worker)

    def _pending(self) -> list[str]:
        """Ids of gripped messages that were given to somebody and not settled."""
        stream = self._bus.keys.partition(TOPIC, self._burst[0].partition).stream
        ours = {message.id for message in self._burst}
        entries = self._bus.client.call("XPENDING", stream, GROUP, "-", "+", 10 * BURST * ATTEMPTS)
        return [id for entry in entries if (id := text(entry[0])) in ours]

    def _unsettled(self) -> set[str]:
        """Ids of gripped messages that nobody has handled or settled."""
        ended = {each.id for each in read_handled(self._handled) if (each.what, each.group) == ("end", GROUP)}
        return {message.id for message in self._burst} - ended | set(self._pending())

    def _has_ended(self, worker: Worker, message_id: str) -> bool:
        wanted = ("end", GROUP, worker.name, message_id)
        return any(
            (each.what, each.group, each.worker, each.id) == wanted for each in read_handled(self._handled)
        )

    @staticmethod
    def _has_lost(worker: Worker) -> bool:
        return worker.says("is not ours any more") or worker.says("another worker goes on there")
