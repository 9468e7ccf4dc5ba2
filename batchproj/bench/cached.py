"""A collection whose features are cached, and another projector for it: what the workload `reproject` starts from.

<cache>/bench/reproject-<items>-v<VERSION>/
    items.parquet    one text a row        collection/     made of it by `batchproj embed`
    before/ after/   two spaces that differ in nothing but the weights of a linear projector
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchproj.bench.workloads import SCHEMA, VERSION, Corpus, Workload
from batchproj.errors import BatchprojError
from batchproj.schema import Modality
from batchproj.space import open_space

DIM = 384


def prepare(workload: Workload, items: int, cache: Path) -> Corpus:
    """The same as `workloads.prepare`, of a collection: embedding 100,000 short texts takes minutes, once.

    It is made where it stays, the manifest last: rows of a table are other items at another place.
    """
    made = Corpus(workload, items, cache / f"{workload.name}-{items}-v{VERSION}")
    if made.manifest.exists():
        return made
    folder = made.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    texts = [f"number {number}" for number in range(items)]  # short: it is not the encoder that is measured
    pq.write_table(pa.table({"id": [str(number) for number in range(items)], "text": texts}), folder / "items.parquet")
    for seed, name in enumerate(("before", "after")):
        _space(folder / name, seed)
    _embed(folder)
    rows = [{"id": name, "bytes": 0, "segments": 1, "seconds": None} for name in _ids(folder / "collection")]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "manifest.parquet")
    return made


def _space(folder: Path, seed: int) -> None:
    """builtin's text encoder with a projector of random weights."""
    import torch
    import yaml

    from batchproj.project import parse_config

    folder.mkdir()
    file = folder / "text.safetensors"
    projector = parse_config({"kind": "linear", "in_dim": DIM, "out_dim": DIM}).build()
    with torch.no_grad():
        for weights in projector.parameters():
            weights.normal_(generator=torch.Generator().manual_seed(seed))
    projector.save(file)
    text = open_space("builtin").space.members()[Modality.TEXT]
    member: dict[str, Any] = {"encoder": text.encoder, "projector": {"kind": "linear", "weights": file.name}}
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": folder.name, "dim": DIM, "text": member}))


def _embed(folder: Path) -> None:
    command = [sys.executable, "-m", "batchproj.cli", "embed", str(folder / "items.parquet")]
    command += [str(folder / "collection"), "--space", str(folder / "before" / "space.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BatchprojError(f"the collection to project again was not made: {done.stderr.strip()[-300:]}")


def _ids(collection: Path) -> list[str]:
    import batchproj

    found: list[str] = batchproj.open(str(collection)).table()["id"].to_pylist()
    return sorted(found)
