"""What every process of a run did when, as a trace that Perfetto and chrome://tracing open.

Format: Trace Event Format, complete events ("ph": "X"), times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from batchproj.collection.unit import Receipt
from batchproj.errors import UsageError


def require_writable(file: Path) -> None:
    """Raise UsageError if a timeline cannot be written there; before hours of work, not after."""
    was_there = file.exists()
    try:
        file.open("a").close()
        if not was_there:  # a run that finds nothing to do writes none
            file.unlink()
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise UsageError(
            f"--profile {file} cannot be written ({said}); expected a file in a folder of yours"
        ) from error


def write_timeline(receipts: Iterable[Receipt], file: Path) -> None:
    """One event for each stage of each unit."""
    spanned = [receipt for receipt in receipts if receipt.spans]
    nodes = sorted({span.node for receipt in spanned for span in receipt.spans})
    numbers = {node: number for number, node in enumerate(nodes, 1)}  # the format wants whole numbers for processes
    names = [{"name": "process_name", "ph": "M", "pid": numbers[node], "args": {"name": node}} for node in nodes]
    events = [event for receipt in spanned for event in _events(receipt, numbers)]
    file.write_text(json.dumps({"traceEvents": [*names, *events], "displayTimeUnit": "ms"}))


def _events(receipt: Receipt, numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    unit = receipt.unit
    for span in receipt.spans:
        told: dict[str, Any] = {"unit": unit.name, "items": unit.items, "bytes": unit.bytes}
        if span.stage == "embed":
            told |= {"encoded": receipt.encoded, "model_s": round(receipt.model_s, 3)}
        yield {
            "name": f"{span.stage} {unit.modality or 'unclear'}",
            "cat": span.stage,
            "ph": "X",
            "ts": round(span.began * 1e6),
            "dur": round(span.seconds * 1e6),
            "pid": numbers[span.node],
            "tid": int(span.where.rpartition(":")[2]),
            "args": told,
        }
