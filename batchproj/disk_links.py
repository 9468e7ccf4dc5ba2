"""Which pairs are linked, of any number of items: in an on-disk DuckDB, so that memory does not follow them.

Whatever shares a pair or a content is linked, and so is all that is linked through it, as `linking.linked` has it. Its
label is the least pair key of all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from batchproj.collection import manifest
from batchproj.collection.plan import raise_if_full
from batchproj.linking import hash_share
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split

MEMORY_LIMIT = "256MB"

_ITEMS = """
CREATE TABLE items AS SELECT item, pair, content_id, modality, features
    FROM ({items}) WHERE status = 'embedded' AND pair IS NOT NULL
"""

# the least key of all is handed on until nothing changes, which takes as many rounds as the longest chain is long
_LINKS = """
CREATE TABLE label AS SELECT DISTINCT pair, pair AS label FROM items;
CREATE TABLE shared AS SELECT DISTINCT pair, content_id FROM items
    WHERE content_id IN (SELECT content_id FROM items GROUP BY content_id HAVING count(DISTINCT pair) > 1);
"""
_HAND_ON = """
CREATE OR REPLACE TABLE lower AS
SELECT pair, min(least_label) AS label FROM shared JOIN (
    SELECT content_id, min(label) AS least_label FROM shared JOIN label USING (pair) GROUP BY content_id
) USING (content_id) GROUP BY pair
"""
_LOWER = "UPDATE label SET label = lower.label FROM lower WHERE lower.pair = label.pair AND lower.label < label.label"


@contextmanager
def linked_items(items: str, scratch: Path) -> Iterator[Any]:
    """A database in `scratch` with the tables `items`, of those that have a pair, and `label`, of pairs.

    `items` is SQL of the manifest's rows.
    """
    settings = {"memory_limit": MEMORY_LIMIT, "threads": 2}
    with _disk_faults(scratch), duckdb.connect(str(scratch / "pairs.duckdb"), config=settings) as db:
        db.execute("SET enable_progress_bar = false")
        db.execute(_ITEMS.format(items=items))
        for statement in [each for each in _LINKS.split(";") if each.strip()]:
            db.execute(statement)
        while True:
            db.execute(_HAND_ON)
            if not db.execute(_LOWER).fetchall()[0][0]:
                break
        yield db


@contextmanager
def _disk_faults(scratch: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, OSError) as error:
        raise_if_full(error, scratch.parent)
        raise


@dataclass(frozen=True)
class Links:
    """What is to be known of some pairs: those on which nothing may be trained, and all that is linked to any.

    `items` of a modality have columns `item`, `pair` and `content_id`.
    """

    held_out: set[str]
    items: dict[Modality, pa.Table]


def links_of(collection: Collection, pairs: Iterable[str], how: Split) -> Links:
    """Of the live run, as `pairs.held_out_pairs` has it in memory; raises TryLater where the disk is full."""
    with tempfile.TemporaryDirectory(prefix="batchproj-links-") as scratch:
        rows = manifest.rows(manifest.fetch(Folder(collection.uri), collection.snapshot, Path(scratch)))
        with linked_items(rows, Path(scratch)) as db:
            db.register("asked", pa.table({"pair": pa.array(sorted(set(pairs)), pa.string())}))
            db.execute("CREATE TABLE ours AS SELECT pair, label FROM label JOIN asked USING (pair)")
            labels = db.execute("SELECT pair, label FROM ours").fetchall()
            held_out = {pair for pair, label in labels if hash_share(label, how.seed) < how.test_fraction}
            return Links(held_out, {each: _items(db, each) for each in collection.snapshot.fingerprints})


def _items(db: Any, modality: Modality) -> pa.Table:
    query = (
        "SELECT item, pair, content_id FROM items JOIN label USING (pair) "
        "WHERE modality = ? AND label IN (SELECT label FROM ours) ORDER BY item"
    )
    return db.sql(query, params=[str(modality)]).to_arrow_table()
