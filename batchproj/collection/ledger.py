"""What is kept about finished runs for people to read."""

from __future__ import annotations

import pyarrow.compute as pc

from batchproj.collection import layout
from batchproj.collection.unit import read_parquet
from batchproj.objectstore import Folder


def quarantine_reasons(folder: Folder, run: str) -> dict[str, int]:
    """How many items of a run are in quarantine for each reason, most first."""
    counts = pc.value_counts(read_parquet(folder.read(layout.quarantine(run)))["reason"]).to_pylist()
    return {each["values"]: each["counts"] for each in sorted(counts, key=lambda each: -each["counts"])}
