"""Stops a run in which one thing goes wrong with many items: a wrong recipe or a broken tool, rather than bad items."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow.compute as pc

from batchproj.collection.plan import TRANSIENT
from batchproj.collection.unit import Receipt, Unit, read_inputs, read_outcome
from batchproj.decode.faults import one_line
from batchproj.errors import TooManyBad
from batchproj.objectstore import Folder
from batchproj.schema import ABOUT, NOT_BAD, UNSUPPORTED, Reason

WINDOW_ITEMS = 1_000
"""So many items must have been finished before anything is judged: a small corpus always gets to its end."""

MOST = 0.5
"""More than this share of the window is a storm, however much went well before."""

EXAMPLES = 3


@dataclass(frozen=True)
class Trip:
    """`count` of the last `items` have this reason; `units` are those that have them."""

    reason: Reason
    count: int
    items: int
    units: list[Unit]


class Breaker:
    """Looks at the last `WINDOW_ITEMS` finished items, in whole units, and so at a few more, and at all before them.

    Units are handed out by modality and key, so the last ones are no sample of the source: sixty broken files of one
    folder fill the window of a run that is otherwise sound. One reason is therefore too many only if it has more than
    the share of the window and more than the share of all items finished so far; or more than half of the window: so a
    storm that begins late is seen at once, and not when all that was good before is outweighed.

    Reasons that say what a source holds never count (`NOT_BAD`, `UNSUPPORTED`). Those that may be gone by the next run
    say nothing of the recipe, but fill the window where a mount or a right is lost: of them only more than half of it
    is too many, and of what has changed only what is gone counts.

    Items that were in quarantine before do not count: that they fail again is no news. Nor do those that were only
    projected, or deferred to another modality, which are not finished.
    """

    def __init__(self, max_share: float, ignored: Collection[Reason] = ()) -> None:
        """`max_share` of the items may have one and the same reason, 0 to 1, and any number those that are ignored."""
        self._max_share = max_share
        self._ignored = {*NOT_BAD, *UNSUPPORTED, *ignored}
        self._last: deque[list[Receipt]] = deque()
        self._window = _Tally()
        self._all = _Tally()

    def add(self, receipts: Iterable[Receipt]) -> Trip | None:
        """Take what has just finished; what is wrong, if too many items have one reason.

        What an earlier attempt at the run has finished is taken all at once, as nobody knows in which order it came:
        it is judged as a whole, and leaves the window as a whole.
        """
        new = [each for each in receipts if each.unit.task == "embed" and not each.unit.again]
        if not new:
            return None
        self._last.append(new)
        self._window.count(new)
        self._all.count(new)
        while self._window.items - sum(map(_finished, self._last[0])) >= WINDOW_ITEMS:
            self._window.count(self._last.popleft(), -1)
        if self._window.items < WINDOW_ITEMS:
            return None
        for reason, count in self._window.reasons.most_common():
            if reason not in self._ignored and self._too_many(Reason(reason), count):
                units = [each.unit for chunk in self._last for each in chunk if each.reasons.get(reason)]
                return Trip(Reason(reason), count, self._window.items, units)
        return None

    def _too_many(self, reason: Reason, count: int) -> bool:
        if count <= self._max_share * self._window.items:
            return False
        everywhere = self._all.reasons[reason] > self._max_share * self._all.items
        return count > MOST * self._window.items or (everywhere and reason not in TRANSIENT)


class _Tally:
    """Finished items, and how many of them have which reason; `changed` are only those that are gone."""

    def __init__(self) -> None:
        self.items = 0
        self.reasons: Counter[str] = Counter()

    def count(self, receipts: list[Receipt], sign: int = 1) -> None:
        for receipt in receipts:
            self.items += sign * _finished(receipt)
            for reason, count in (receipt.reasons | {Reason.CHANGED: receipt.gone}).items():
                self.reasons[reason] += sign * count


def _finished(receipt: Receipt) -> int:
    return receipt.embedded + receipt.copied + receipt.quarantined


def paused(folder: Folder, trip: Trip) -> TooManyBad:
    """The error to end the run with: which reason, how many, three examples, and how to go on."""
    return TooManyBad(
        f"paused: {trip.count:,} of the last {trip.items:,} items have the reason {trip.reason} "
        f"({ABOUT[trip.reason].meaning}), more than --max-bad allows, such as {'; '.join(_examples(folder, trip))}; "
        "nothing was made visible, and what is done is kept for a run with the same space, limits and decoders (with "
        f"others all of it is embedded again); mend the cause and run again with --retry-quarantined {trip.reason}, or "
        "let them be with a higher --max-bad, 100% for any number"
    )


def _examples(folder: Folder, trip: Trip) -> list[str]:
    found: list[str] = []
    for unit in trip.units:
        outcome = read_outcome(folder, unit)
        bad = outcome.filter(pc.equal(outcome["reason"], str(trip.reason))).slice(0, EXAMPLES - len(found))
        inputs = read_inputs(folder, unit)
        uris = dict(zip(inputs["item"].to_pylist(), inputs["uri"].to_pylist(), strict=True))
        found += [f"{one_line(uris[row['item']])} ({row['detail']})" for row in bad.to_pylist()]
        if len(found) >= EXAMPLES:
            break
    return found
