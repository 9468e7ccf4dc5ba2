"""Column names and the Arrow schema of every table that crosses a stage or reaches storage."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import pyarrow as pa

Cache = Literal["pooled", "tokens"]
"""What of an encoder's output is a feature: one vector a segment, or its tokens before they are pooled."""


class Modality(StrEnum):
    """What an item is, decided by its content."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


class Reason(StrEnum):
    """Why an item is in quarantine. The list is closed: readers may match on it."""

    EMPTY = "empty"  # 0 bytes
    UNKNOWN_TYPE = "unknown_type"  # no known magic bytes, and not text
    WRONG_TYPE = "wrong_type"  # content and name disagree, and the content is no use (HTML as .jpg)
    UNSUPPORTED_FORMAT = "unsupported_format"  # recognised, but not a format we open (PSD, SVG)
    TRUNCATED = "truncated"  # the file ends before its content does
    CORRUPT = "corrupt"  # the decoder refused it
    TOO_LARGE = "too_large"  # pixels, seconds or bytes above the recipe's limits
    BLANK_TEXT = "blank_text"  # nothing but white space
    INVALID_UTF8 = "invalid_utf8"  # text that is not UTF-8; detail has the byte offset
    NO_SAMPLES = "no_samples"  # sound of length 0
    SILENT = "silent"  # sound in which nothing is to be heard, where the space leaves out silence
    NOT_FINITE = "not_finite"  # NaN or infinity in samples, features or vector
    NO_ENCODER = "no_encoder"  # the space has no encoder for this modality
    CHANGED = "changed"  # not the bytes that were listed: changed or gone during the run
    BAD_NAME = "bad_name"  # the object's name is not UTF-8
    FORBIDDEN = "forbidden"  # the object itself may not be read
    BAD_ROW = "bad_row"  # a table's row that names or holds no item; detail says what is wrong with it
    OUTSIDE_ROOTS = "outside_roots"  # a table's row names an object that the table may not open
    DECODER_CRASHED = "decoder_crashed"  # its decoder died of it twice, or ran past the limits of time
    MISSING = "missing"  # a table's row names an object that is not there


def listing_schema() -> pa.Schema:
    """One row per listed item, as the source yields them."""
    return pa.schema(
        [
            pa.field("item", pa.string(), nullable=False),  # digest of the canonical URI, of rows that of their address
            pa.field("uri", pa.string(), nullable=False),
            pa.field("key", pa.string(), nullable=False),  # path below the source's root, and the place in that file
            pa.field("pair", pa.string()),
            pa.field("size", pa.int64(), nullable=False),  # bytes
            pa.field("source_version", pa.string(), nullable=False),
            pa.field("metadata", pa.string()),  # JSON
            pa.field("place", pa.string()),  # source.place.Place, null for an object
        ]
    )


def vector_schema(dim: int) -> pa.Schema:
    """Rows of the collection: same names and types in Parquet and in the Lance table.

    `id` carries Lance's primary-key mark: without it two upserts of one new key leave two rows.
    """
    primary_key = {"lance-schema:unenforced-primary-key": "true"}
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=primary_key),
            pa.field("item", pa.string(), nullable=False),
            pa.field("segment", pa.int32(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("pair", pa.string()),
            pa.field("start", pa.float32()),  # seconds, or characters for text
            pa.field("end", pa.float32()),
            pa.field("text", pa.string()),
            pa.field("metadata", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("fingerprint", pa.string(), nullable=False),
            pa.field("content_id", pa.string(), nullable=False),
            pa.field("source_version", pa.string(), nullable=False),
            pa.field("run", pa.string(), nullable=False),
        ]
    )


def feature_schema(dim: int, cache: Cache = "pooled") -> pa.Schema:
    """Rows of the feature cache: a vector row before it was projected, feature (D,) or tokens (T, D), float16."""
    made_later = {"vector", "fingerprint", "run"}
    kept = [pa.field(f.name, f.type, f.nullable) for f in vector_schema(1) if f.name not in made_later]
    feature = pa.list_(pa.float16(), dim)
    return pa.schema([*kept, pa.field("feature", pa.list_(feature) if cache == "tokens" else feature, nullable=False)])


def outcome_schema() -> pa.Schema:
    """What came of each item of a unit: embedded, quarantined, or deferred to another modality."""
    return pa.schema(
        [
            pa.field("item", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("stage", pa.string()),  # read, decode, encode
            pa.field("modality", pa.string()),
            pa.field("content_id", pa.string()),
            pa.field("segments", pa.int32(), nullable=False),
            pa.field("features", pa.string()),  # name of the file of cached features
        ]
    )
