"""Workloads: so many items of a kind as files in a folder, made once and kept, with a manifest beside them.

<cache>/bench/<workload>-<items>-v<VERSION>/
    files/000/000017.png        manifest.parquet: id, bytes, segments, seconds
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchproj.bench import corpus
from batchproj.errors import UsageError
from batchproj.fetching import cache_root
from batchproj.schema import Modality

VERSION = 1
"""Raised by hand when items of a workload become other ones; results of two versions are not comparable."""

WINDOW_S = 30.0
FOLDER_ITEMS = 1_000
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("segments", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Item:
    """One file. `segments` vectors are to be made of it; `seconds` is the length of a sound."""

    data: bytes
    segments: int = 1
    seconds: float | None = None


@dataclass(frozen=True)
class Workload:
    """`items` of them in full; `make` gives the item of a seed. `on_s3`: read from a local S3, not from disk.

    From `distinct` items on, pictures come again, each time with other bytes: making photographs takes longer than
    embedding them.
    """

    name: str
    modality: Modality
    items: int
    about: str
    suffix: str
    make: Callable[[list[int]], Item]
    on_s3: bool = False
    is_reprojection: bool = False
    distinct: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A workload on disk."""

    workload: Workload
    items: int
    folder: Path

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.parquet"


def _text(make: Callable[[list[int]], str]) -> Callable[[list[int]], Item]:
    return lambda seed: Item(make(seed).encode())


def _picture(make: Callable[[list[int]], bytes]) -> Callable[[list[int]], Item]:
    return lambda seed: Item(make(seed))


def _sound(seconds: Callable[[list[int]], float]) -> Callable[[list[int]], Item]:
    def make(seed: list[int]) -> Item:
        length = seconds(seed)
        return Item(corpus.sound(seed, length), int(-(-length // WINDOW_S)), length)

    return make


_TEXT, _IMAGE, _AUDIO = Modality.TEXT, Modality.IMAGE, Modality.AUDIO
WORKLOADS = {
    each.name: each
    for each in (
        Workload("text-short", _TEXT, 5_000, "sentences of 3 to 60 words", ".txt", _text(corpus.sentence)),
        Workload("text-long", _TEXT, 1_000, "texts of about 240 tokens", ".txt", _text(corpus.paragraph)),
        Workload("image-small", _IMAGE, 2_000, "PNG up to 300 px", ".png", _picture(corpus.icon)),
        Workload(
            "image-camera", _IMAGE, 300, "JPEG of 1600 to 2400 px, at most a thousand distinct", ".jpg",
            _picture(corpus.photograph), distinct=1_000,
        ),
        Workload("audio-short", _AUDIO, 500, "sounds of 1 to 3 s", ".flac", _sound(corpus.short_seconds)),
        Workload("audio-long", _AUDIO, 12, "sounds of 1 to 6 minutes", ".flac", _sound(corpus.long_seconds)),
        Workload(
            "many-small-objects", _TEXT, 20_000, "objects of 2 kB on S3", ".txt", _text(corpus.record), on_s3=True
        ),
        Workload(
            "reproject", _TEXT, 100_000, "cached features, another projector", ".txt", _text(corpus.sentence),
            is_reprojection=True,
        ),
    )
}  # fmt: skip


def chosen(names: list[str]) -> list[Workload]:
    """Workloads by name, all without one; UsageError for a name that is none."""
    for name in names:
        if name not in WORKLOADS:
            raise UsageError(f"no workload '{name}': expected some of {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in names or WORKLOADS]


def cache_folder() -> Path:
    """Where corpora are kept, beside the models that were fetched."""
    return cache_root() / "bench"


def prepare(workload: Workload, items: int, cache: Path) -> Corpus:
    """The corpus of the first `items` items; made, if it is not there. An item does not depend on their number."""
    made = Corpus(workload, items, cache / f"{workload.name}-{items}-v{VERSION}")
    if made.folder.exists():
        return made
    new = made.folder.with_suffix(f".{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    rows = list(_write(workload, items, new / "files"))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), new / "manifest.parquet")
    try:
        new.rename(made.folder)
    except OSError:  # another process was quicker, with the same bytes
        shutil.rmtree(new)
    return made


def _write(workload: Workload, items: int, files: Path) -> Iterator[dict[str, object]]:
    own = list(WORKLOADS).index(workload.name)
    for number in range(items):
        name = _name(workload, number)
        if workload.distinct is None or number < workload.distinct:
            item = workload.make([VERSION, own, number])
        else:
            first = (files / _name(workload, number % workload.distinct)).read_bytes()
            item = Item(corpus.with_comment(first, str(number)))
        file = files / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(item.data)
        yield {"id": name, "bytes": len(item.data), "segments": item.segments, "seconds": item.seconds}


def _name(workload: Workload, number: int) -> str:
    return f"{number // FOLDER_ITEMS:03d}/{number:06d}{workload.suffix}"


def expected_ids(manifest: Path) -> set[str]:
    """What every contender has to give a vector to: a file, or `file#window` where it has more than one."""
    rows = pq.read_table(manifest).to_pylist()
    return {name for row in rows for name in segment_ids(row["id"], row["segments"])}


def segment_ids(name: str, segments: int) -> list[str]:
    return [name] if segments == 1 else [f"{name}#{number}" for number in range(segments)]
