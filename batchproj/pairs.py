"""Pairs of a collection and the part of them that training must not see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.linking import split
from batchproj.search import Collection
from batchproj.space import Split


def paired_rows(collection: Collection) -> pa.Table:
    """Live rows that belong to a pair: id, uri, modality, pair, text, vector, content_id; all in memory."""
    columns = ["id", "uri", "modality", "pair", "text", "vector", "content_id"]
    return collection.dataset().to_table(columns=columns, filter=pc.field("pair").is_valid())


def held_out_pairs(rows: pa.Table, how: Split) -> set[str]:
    """Pair keys of the test part; items linked by pair or by equal content stay on one side."""
    pairs = rows["pair"].to_pylist()
    tested = split(pairs, rows["content_id"].to_pylist(), how.test_fraction, how.seed)
    return {pair for pair, test in zip(pairs, tested, strict=True) if test}


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A fixed-size list column as (n, width) float32."""
    values = column.combine_chunks()
    rows: npt.NDArray[np.float32] = (
        values.flatten().to_numpy().reshape(-1, values.type.list_size).astype(np.float32, copy=False)
    )
    return rows
