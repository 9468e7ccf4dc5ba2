"""A source seen from elsewhere, and a run that looks at no source: what counts as changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import OPTIONS, resolved, run, vectors, without_ray

import batchproj
from batchproj.collection.cache import live_features
from batchproj.embed import Watch, embed
from batchproj.objectstore import Folder
from batchproj.schema import Modality


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def pairs(collection: Path) -> set[str]:
    return set(batchproj.open(str(collection)).table()["pair"].to_pylist())


def test_another_root_gives_other_pair_keys_and_reads_and_encodes_nothing(
    corpus: Path, tiny_space: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus, tmp_path / "source", copy_function=shutil.copy2)
    run(tmp_path / "source" / "d0", tmp_path / "c", tiny_space)
    before = vectors(tmp_path / "c")
    assert pairs(tmp_path / "c") == {"item0", "item3", "item6", "item9"}
    for folder in ("d1", "d2"):
        shutil.rmtree(tmp_path / "source" / folder)
    for file in (tmp_path / "source" / "d0").iterdir():  # whoever read one would find other bytes
        info = file.stat()
        file.write_bytes(b"\0" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    report = run(tmp_path / "source", tmp_path / "c", tiny_space)
    assert (report.reprojected, report.embedded, report.quarantined) == (8, 0, 0)
    assert not any(report.encode_calls.values())
    assert pairs(tmp_path / "c") == {"d0/item0", "d0/item3", "d0/item6", "d0/item9"}
    assert vectors(tmp_path / "c") == before
    snapshot = batchproj.open(str(tmp_path / "c")).snapshot
    cached = live_features(Folder(str(tmp_path / "c")), snapshot, Modality.IMAGE)
    assert cached is not None
    assert set(cached["pair"].to_pylist()) == pairs(tmp_path / "c")  # what projectors are trained by
    assert run(tmp_path / "source", tmp_path / "c", tiny_space).commit is None


def test_another_collection_inside_the_source_is_said_and_its_own_is_not(
    corpus: Path, tiny_space: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(corpus, source)
    own, other = source / "own.batchproj", source / "old" / "other.batchproj"

    def said(collection: Path) -> list[str]:
        lines: list[str] = []
        embed(str(source), str(collection), resolved(tiny_space), OPTIONS, Watch(step=lines.append))
        return [line for line in lines if line.startswith("warning")]

    assert said(own) == []
    assert said(own) == []  # it is there now
    assert said(other) == [
        f"warning: file://{own} is a collection of batchproj's, and its files are listed as items; move it out of the "
        "source, or name what to embed by a glob"
    ]
