"""What the tests of killed and resumed runs share: looking at a collection, and at processes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from in_process import run, without_ray

from batchproj.collection.ledger import Report
from batchproj.collection.snapshot import write_snapshot
from batchproj.embed import Options
from batchproj.objectstore import Folder
from batchproj.recipe import Recipe
from batchproj.schema import Modality, vector_schema
from batchproj.search import Collection


def live_rows(collection: object) -> pa.Table:
    """What readers see, by id: Parquet and Lance say the same, ids are unique, vectors have length 1."""
    opened = Collection(str(collection))
    parquet, lance = opened.table().sort_by("id"), opened._table.to_arrow().sort_by("id")
    assert parquet.schema.equals(vector_schema(opened.dim))
    assert parquet.equals(lance)
    ids = parquet["id"].to_pylist()
    assert len(ids) == len(set(ids)) == opened.snapshot.rows
    if ids:
        norms = np.linalg.norm(np.stack(parquet["vector"].to_numpy()), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)
    return parquet


def start(
    *arguments: object, group: bool = False, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A `batchproj` command in a process of its own, with `group` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "batchproj.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=group,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def descendants(pid: int) -> dict[int, str]:
    """Living processes that a process has started, and those that these have, and the name each goes by."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            names[int(entry.name)] = (entry / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
        except OSError:
            continue  # gone meanwhile
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = names[child]
            waiting.append(child)
    return found


def resume(source: object, collection: object, space: Path, recipe: Recipe) -> Report:
    """A run inside this process and without Ray, after one that was killed or from the start."""
    with without_ray():
        return run(source, collection, space, Options(recipe))


def damage_features(collection: Path, modality: Modality, value: float) -> None:
    """Put a value into one cached feature of a modality, as if it had been written like that."""
    live = Collection(str(collection)).snapshot
    file = min((collection / "features" / live.fingerprints[modality].feature).glob("*.parquet"))
    table = pq.read_table(file)
    feature = table["feature"].combine_chunks()
    values = feature.flatten().to_numpy().copy()
    values[0] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float16()), feature.type.list_size)
    place = table.schema.get_field_index("feature")
    pq.write_table(table.set_column(place, table.schema.field(place), column), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    features = [
        each.model_copy(update={"sha256": digest}) if each.name == file.stem else each for each in live.features
    ]
    write_snapshot(Folder(str(collection)), live.model_copy(update={"features": features}))
