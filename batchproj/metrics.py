"""What a run tells Prometheus, through Ray, while it goes on; Ray's agents serve it with `ray_` before each name.

All of it is counted by the driver from the units' receipts, so an item counts when its unit is written. A run that has
ended tells nothing any more: what came of it is in the ledger, and what readers see in the service's own metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from batchproj.collection.unit import Receipt, Unit

Label = Callable[[Unit], str]

COUNTERS: dict[str, tuple[str, str]] = {
    "batchproj_items": ("modality", "items embedded or projected, by the run under way"),
    "batchproj_quarantined_items": ("reason", "items that could not be embedded"),
    "batchproj_worker_busy_seconds": ("modality", "time that workers decoded, encoded and projected"),
    "batchproj_model_seconds": ("modality", "the share of it that the encoder itself ran"),
    "batchproj_write_seconds": ("modality", "time that units were written"),
    "batchproj_wait_seconds": (
        "modality",
        "time between a unit's embedding and its record, neither working nor writing",
    ),
}
GAUGES: dict[str, tuple[str, str]] = {
    "batchproj_items_behind": ("modality", "items of the listing that the live run lacks or has of another version"),
    "batchproj_live_run": ("", "number of the run that readers see, as of the begin of the run under way"),
    "batchproj_workers_replaced": ("", "workers that died and were replaced, in the run under way"),
}


class RunMetrics:
    """The figures of one run over so many units; `label` says under which modality a unit counts."""

    def __init__(self, collection: str, live: str | None, units: Iterable[Unit], label: Label) -> None:
        """Needs a running Ray."""
        from ray.util.metrics import Counter, Gauge

        self._label = label
        self._counters = {name: _made(Counter, name, *told, collection) for name, told in COUNTERS.items()}
        self._gauges = {name: _made(Gauge, name, *told, collection) for name, told in GAUGES.items()}
        self._behind: dict[str, int] = {}
        for unit in units:
            self._behind[label(unit)] = self._behind.get(label(unit), 0) + unit.items
        self._tell_behind()
        self._gauges["batchproj_live_run"].set(int(live) if live else 0)
        self.replaced(0)

    def add(self, receipt: Receipt) -> None:
        unit = receipt.unit
        modality = self._label(unit)
        worked = [span for span in receipt.spans if span.stage in ("embed", "project")]
        written = [span for span in receipt.spans if span.stage == "write"]
        waited = max((span.began for span in written), default=0) - max((span.ended for span in worked), default=0)
        for name, amount in (
            ("batchproj_items", receipt.embedded + receipt.copied),
            ("batchproj_worker_busy_seconds", receipt.busy_s),
            ("batchproj_model_seconds", receipt.model_s),
            ("batchproj_write_seconds", sum(span.seconds for span in written)),
            ("batchproj_wait_seconds", waited),
        ):
            self._count(name, amount, modality=modality)
        for reason, items in receipt.reasons.items():
            self._count("batchproj_quarantined_items", items, reason=str(reason))
        self._behind[modality] -= unit.items
        self._tell_behind()

    def replaced(self, workers: int) -> None:
        self._gauges["batchproj_workers_replaced"].set(workers)

    def _tell_behind(self) -> None:
        for modality, items in self._behind.items():
            self._gauges["batchproj_items_behind"].set(items, tags={"modality": modality})

    def _count(self, name: str, amount: float, **tags: str) -> None:
        if amount > 0:  # clocks of two nodes may differ by more than a unit waited
            self._counters[name].inc(amount, tags=tags)


def _made(kind: Any, name: str, tag: str, about: str, collection: str) -> Any:
    keys = ("collection", tag) if tag else ("collection",)
    metric = kind(name, description=about, tag_keys=keys)
    metric.set_default_tags({"collection": collection})
    return metric
