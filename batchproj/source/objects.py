"""Items that are objects: a folder, prefix or glob on any fsspec URL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from batchproj.objectstore import Listed
from batchproj.schema import listing_schema


def list_items(pages: Iterable[list[Listed]]) -> Iterator[pa.RecordBatch]:
    """Pages of listed objects, in the store's order."""
    return (_batch(page) for page in pages if page)


def _batch(page: list[Listed]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([item_id(listed.uri) for listed in page]),
            pa.array([listed.uri for listed in page]),
            pa.array([listed.key for listed in page]),
            pa.array([pair_key(listed.key) for listed in page]),
            pa.array([listed.size for listed in page], pa.int64()),
            pa.array([listed.version for listed in page]),
            pa.nulls(len(page), pa.string()),
            pa.nulls(len(page), pa.string()),
        ],
        schema=listing_schema(),
    )


def item_id(uri: str) -> str:
    """Identity of an item: 128 bits of the sha256 of its canonical URI, in hex."""
    return hashlib.sha256(uri.encode()).hexdigest()[:32]


def pair_key(key: str) -> str:
    """Path up to the first dot of the file name (WebDataset's convention): `a/frog.spoken.ogg` -> `a/frog`."""
    folder, slash, name = key.rpartition("/")
    stem = name.split(".", 1)[0]
    return folder + slash + (stem or name)
