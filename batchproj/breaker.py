"""Stops a run in which one thing goes wrong with many items: a wrong recipe or a broken tool, rather than bad items."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import pyarrow.compute as pc

from batchproj.collection.plan import TRANSIENT
from batchproj.collection.unit import Receipt, Unit, read_inputs, read_outcome
from batchproj.decode.faults import one_line
from batchproj.errors import TooManyBad
from batchproj.objectstore import Folder
from batchproj.schema import ABOUT, NOT_BAD, Reason

WINDOW_ITEMS = 1_000
"""So many items must have been finished before anything is judged: a small corpus always gets to its end."""

EXAMPLES = 3


@dataclass(frozen=True)
class Trip:
    """`count` of the last `items` have this reason; `units` are those that have them."""

    reason: Reason
    count: int
    items: int
    units: list[Unit]


class Breaker:
    """Looks at the last `WINDOW_ITEMS` finished items, in whole units, and so at a few more.

    Items that were in quarantine before do not count: that they fail again is no news. Nor do those that were only
    projected, or deferred to another modality, which are not finished.
    """

    def __init__(self, max_share: float) -> None:
        """`max_share` of the items may have one and the same reason, 0 to 1."""
        self._max_share = max_share
        self._last: deque[Receipt] = deque()
        self._items = 0
        self._reasons: Counter[str] = Counter()

    def add(self, receipt: Receipt) -> Trip | None:
        """Take the next finished unit; what is wrong, if too many items have one reason."""
        if receipt.unit.task == "project" or receipt.unit.again:
            return None
        self._last.append(receipt)
        self._items += _finished(receipt)
        self._reasons.update(_bad(receipt))
        while self._items - _finished(self._last[0]) >= WINDOW_ITEMS:
            oldest = self._last.popleft()
            self._items -= _finished(oldest)
            self._reasons.subtract(_bad(oldest))
        if self._items < WINDOW_ITEMS or not self._reasons:
            return None
        reason, count = self._reasons.most_common(1)[0]
        if count <= self._max_share * self._items:
            return None
        units = [each.unit for each in self._last if each.reasons.get(reason)]
        return Trip(Reason(reason), count, self._items, units)


def _bad(receipt: Receipt) -> dict[str, int]:
    return {reason: count for reason, count in receipt.reasons.items() if reason not in NOT_BAD}


def _finished(receipt: Receipt) -> int:
    return receipt.embedded + receipt.copied + receipt.quarantined


def paused(folder: Folder, trip: Trip) -> TooManyBad:
    """The error to end the run with: which reason, how many, three examples, and how to go on."""
    if trip.reason in TRANSIENT:
        again = "run the same command again, which tries them again"
    else:
        again = f"mend the cause and run again with --retry-quarantined {trip.reason}"
    return TooManyBad(
        f"paused: {trip.count:,} of the last {trip.items:,} items have the reason {trip.reason} "
        f"({ABOUT[trip.reason].meaning}), more than --max-bad allows, such as {'; '.join(_examples(folder, trip))}; "
        f"nothing was made visible, and what is done is kept; {again}, or let them be with a higher --max-bad, "
        "100% for any number"
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
