"""Tables of a few rows as files, and what a collection has of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from runs import live_rows

from batchproj.collection import layout
from batchproj.objectstore import Folder
from batchproj.source.listing import Seal, list_items

Row = dict[str, Any]
KINDS = ["parquet", "jsonl", "csv"]


def words(number: int) -> str:
    return f"w{number % 13 + 1} w{number % 7 + 1} w{number % 5 + 1} w{number % 11 + 1}"


def rows(count: int = 12) -> list[Row]:
    return [
        {"id": f"r{n}", "text": words(n), "pair": f"p{n // 2}", "colour": ["red", "blue"][n % 2]} for n in range(count)
    ]


def encoded(kind: str, table: list[Row]) -> bytes:
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(table), sink, row_group_size=4)
        return sink.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in table).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def write(path: Path, table: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.suffix[1:], table))
    return path


def live(collection: object) -> dict[str, Row]:
    """Rows that readers see, by what stands behind the `#` of their URI, or by the URI."""
    return {row["uri"].rpartition("#")[2]: row for row in live_rows(collection).to_pylist()}


def listed(source: object) -> list[Row]:
    pages = list_items(str(source), "file:///c")
    return [row for page in pages if not isinstance(page, Seal) for row in page.to_pylist()]


def quarantined(collection: object, report: Any) -> dict[str, str]:
    data = Folder(str(collection)).read(layout.quarantine(report.run))
    found = pq.read_table(pa.BufferReader(data)).to_pylist()
    return {row["uri"].rpartition("#")[2]: f"{row['reason']}: {row['detail']}" for row in found}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "png")
    return sink.getvalue()
