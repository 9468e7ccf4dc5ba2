"""What a run holds: how much of what, which metadata, the ledger, and a map of its vectors."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.dataset as pads

from batchproj.balance import read_balance
from batchproj.collection import layout
from batchproj.evaluate import read_evaluation
from batchproj.objectstore import Folder
from batchproj.search import Collection
from batchproj.tags import Tags

SAMPLE_ROWS = 2_000
"""Rows that are looked at for the map, and for what fields the metadata have."""

MOST_FIELDS, MOST_VALUES, VALUE_CHARS = 40, 20, 100
_LEDGER = (
    *("run", "state", "started", "finished", "seconds", "items", "embedded", "reprojected", "copied", "unchanged"),
    *("deleted", "quarantined", "rows"),
)


class Overview:
    """Of one run, looked up when somebody asks first."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._looking = threading.RLock()
        self._seen: dict[str, Any] = {}

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of items and rows by modality, and the fields of the metadata in a sample of rows."""
        counted: dict[str, Any] = self._once("stats", self._counted)
        return counted

    @property
    def map(self) -> list[dict[str, Any]]:
        """A sample of rows on their two main axes, each from -1 to 1: near on it is near in the space, by and large."""
        drawn: list[dict[str, Any]] = self._once("map", self._drawn)
        return drawn

    def _once(self, name: str, look: Callable[[], Any]) -> Any:
        """What is looked up when somebody asks first; whoever asks meanwhile waits for the same."""
        with self._looking:
            if name not in self._seen:
                self._seen[name] = look()
            return self._seen[name]

    def _counted(self) -> dict[str, Any]:
        snapshot, rows = self._collection.snapshot, self._collection.dataset()
        counted = {}
        for kind in self._collection.kinds:
            own = pads.field("modality") == str(kind)
            items = rows.count_rows(filter=own & (pads.field("segment") == 0))
            counted[str(kind)] = {"items": items, "rows": rows.count_rows(filter=own)}
        return {
            "run": snapshot.run,
            "source": snapshot.source,
            "dim": snapshot.dim,
            "listed": snapshot.listed,
            "quarantined": snapshot.quarantine.rows if snapshot.quarantine else 0,
            "items": sum(each["items"] for each in counted.values()),
            "rows": snapshot.rows,
            "modalities": counted,
            "metadata": self._fields(),
        }

    @property
    def has_balance(self) -> bool:
        """Whether the scores were measured, which may come after the run."""
        return read_balance(Folder(self._collection.uri), self._collection.snapshot.space) is not None

    def runs(self) -> list[dict[str, Any]]:
        """The ledger, newest first, with the recall of those runs that were evaluated, by pair of modalities."""
        folder = Folder(self._collection.uri)
        kept = Tags(folder).runs()
        measured = {name.removesuffix(".json") for name in folder.names(layout.EVALUATIONS)}
        told = []
        for entry in reversed(self._collection.runs()):
            run = entry["run"]
            evaluated = read_evaluation(folder, run) if run in measured else None
            recall = evaluated["pairs"] if evaluated else None
            shown = {"live": run == self._collection.run, "kept": run in kept, "recall": recall}
            told.append({name: entry.get(name) for name in _LEDGER} | shown)
        return told

    @property
    def _sample(self) -> list[dict[str, Any]]:
        sampled: list[dict[str, Any]] = self._once("sample", lambda: self._collection.sample(SAMPLE_ROWS))
        return sampled

    def _fields(self) -> dict[str, dict[str, Any]]:
        """By field its kinds and most frequent values; what is nested is left out."""
        kinds: dict[str, set[str]] = {}
        values: dict[str, Counter[Any]] = {}
        for row in self._sample:
            for name, value in json.loads(row["metadata"] or "{}").items():
                if isinstance(value, str | int | float):
                    kinds.setdefault(name, set()).add(type(value).__name__)
                    if len(str(value)) <= VALUE_CHARS:
                        values.setdefault(name, Counter())[value] += 1
        names = sorted(kinds)[:MOST_FIELDS]
        return {
            name: {
                "kinds": sorted(kinds[name]),
                "values": [value for value, _ in values.get(name, Counter()).most_common(MOST_VALUES)],
            }
            for name in names
        }

    def _drawn(self) -> list[dict[str, Any]]:
        rows = self._sample
        if not rows:
            return []
        vectors = np.asarray([row["vector"] for row in rows], np.float32)
        centred = vectors - vectors.mean(axis=0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        places = centred @ axes[:2].T
        if places.shape[1] < 2:
            places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
        places /= max(float(np.abs(places).max()), 1e-9)
        told = ("id", "item", "modality", "uri")
        return [
            {**{name: row[name] for name in told}, "text": (row["text"] or "")[:VALUE_CHARS] or None}
            | {"x": round(float(x), 4), "y": round(float(y), 4)}
            for row, (x, y) in zip(rows, places, strict=True)
        ]
