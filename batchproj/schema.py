"""Column names and the Arrow schema of every table that crosses a stage or reaches storage."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
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
    """Why an item is in quarantine. The list is closed: readers may match on it. `ABOUT` says what each means."""

    EMPTY = "empty"
    UNKNOWN_TYPE = "unknown_type"
    WRONG_TYPE = "wrong_type"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    BLANK_TEXT = "blank_text"
    INVALID_UTF8 = "invalid_utf8"
    NO_SAMPLES = "no_samples"
    NO_SOUND_TRACK = "no_sound_track"
    SILENT = "silent"
    NOT_FINITE = "not_finite"
    NO_ENCODER = "no_encoder"
    CHANGED = "changed"
    BAD_NAME = "bad_name"
    FORBIDDEN = "forbidden"
    BAD_ROW = "bad_row"
    OUTSIDE_ROOTS = "outside_roots"
    MISSING = "missing"
    DECODER_CRASHED = "decoder_crashed"


class About(NamedTuple):
    """What a reason means, and what to do about it."""

    meaning: str
    remedy: str


ABOUT = {
    Reason.EMPTY: About("0 bytes", "upload it again"),
    Reason.UNKNOWN_TYPE: About("neither text nor a format that is known", "convert it, or leave it out"),
    Reason.WRONG_TYPE: About("named as a medium, but it is text, such as an error page", "download it again"),
    Reason.UNSUPPORTED_FORMAT: About("a known format that is not opened, such as PSD or SVG", "convert it"),
    Reason.TRUNCATED: About("the file ends before its content does", "upload or download it again"),
    Reason.CORRUPT: About("the decoder refused it", "replace it by a sound copy"),
    Reason.TOO_LARGE: About(
        "more pixels, seconds, bytes or memory than allowed", "raise `limits` in the recipe, or shrink it"
    ),
    Reason.BLANK_TEXT: About("nothing but white space", "nothing, or leave it out"),
    Reason.INVALID_UTF8: About("text that is not UTF-8; the detail has the place", "save it as UTF-8"),
    Reason.NO_SAMPLES: About("sound of length 0", "record or convert it again"),
    Reason.NO_SOUND_TRACK: About(
        "a film without sound, where that is embedded too", "nothing: no bad item, `--max-bad` does not count it"
    ),
    Reason.SILENT: About("sound in which nothing is to be heard", "leave out `skip_silence` in the space to embed it"),
    Reason.NOT_FINITE: About("NaN or infinity in samples, features or vector", "replace it; if many, try dtype fp32"),
    Reason.NO_ENCODER: About("the space has no encoder for this kind", "add one to the space"),
    Reason.CHANGED: About("changed or gone between listing and reading", "nothing: the next run tries it again"),
    Reason.BAD_NAME: About("the name is not UTF-8, or leads out of its tar", "rename it"),
    Reason.FORBIDDEN: About(
        "this very object may not be read, or its disk fails over it",
        "give the right to read it; the next run tries again",
    ),
    Reason.BAD_ROW: About("a row that names or holds no item; the detail says why", "mend the row"),
    Reason.OUTSIDE_ROOTS: About("a row names an object that its table may not open", "declare `roots` in the recipe"),
    Reason.MISSING: About("a row names an object that is not there", "upload the object, or mend the row"),
    Reason.DECODER_CRASHED: About("it killed its decoder twice, or took too long", "replace it; it may be hostile"),
}
"""The one place for it: `batchproj quarantine` shows it, the README repeats it."""

NOT_BAD = frozenset({Reason.NO_SOUND_TRACK})
"""Of items with which nothing is wrong: they do not count as bad, whatever their number."""

UNSUPPORTED = frozenset({Reason.NO_ENCODER, Reason.UNKNOWN_TYPE, Reason.UNSUPPORTED_FORMAT})
"""Of what a source holds beside what can be embedded, such as zips: nothing goes wrong where they are many, so no run
is paused for them; they do count as bad when it is done."""


def listing_schema() -> pa.Schema:
    """One row per listed item, as the source yields them."""
    import pyarrow as pa

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
    import pyarrow as pa

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
    import pyarrow as pa

    made_later = {"vector", "fingerprint", "run"}
    kept = [pa.field(f.name, f.type, f.nullable) for f in vector_schema(1) if f.name not in made_later]
    feature = pa.list_(pa.float16(), dim)
    return pa.schema([*kept, pa.field("feature", pa.list_(feature) if cache == "tokens" else feature, nullable=False)])


def outcome_schema() -> pa.Schema:
    """What came of each item of a unit: embedded, quarantined, or deferred to another modality."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("item", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),  # of an embedded item: what its name promises in vain
            pa.field("stage", pa.string()),  # read, decode, encode
            pa.field("modality", pa.string()),
            pa.field("content_id", pa.string()),
            pa.field("segments", pa.int32(), nullable=False),
            pa.field("features", pa.string()),  # name of the file of cached features
        ]
    )


def quarantine_schema() -> pa.Schema:
    """`quarantine/<run>.parquet`: every item that is in quarantine after that run, by URI.

    `attempts` counts the runs that tried this very version of the object and failed, this one and those before that
    became live; `run` is the last of them.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("item", pa.string()),
            pa.field("uri", pa.string()),
            pa.field("modality", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("stage", pa.string()),  # read, decode, encode
            pa.field("attempts", pa.int32()),
            pa.field("source_version", pa.string()),
            pa.field("run", pa.string()),
        ]
    )
