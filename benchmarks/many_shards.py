"""10^8 objects that nobody has: `python benchmarks/many_shards.py run 1000000 100 shards.jsonl`.

So many made-up objects in a shard, so many shards, all different, each shard a collection of its own on this disk. Each
goes through `embed` as it is, twice, in fresh processes: a first run, and a rerun in which 0.1 % changed. Two things
are stand-ins: the store's pages of names, and the workers, who read and embed nothing and leave files of made-up
vectors of 32 dims. Listing, plan, units, ledger, parts, manifest, Lance table, index, checks and switch are real.

Each shard adds a line of JSON to the file when it is done: peak memory, seconds of plan, stand-in and commit, and what
it left on disk, which is then removed. Shards that have a line are not done again: it may be stopped and go on. Kept
are the receipts of the first runs, in a folder beside the file, for the other command:

    python benchmarks/many_shards.py together shards.jsonl

does with the receipts of all shards what the driver of one run over all of it would: hold them, write the list of
files and read it again. Both commands end with a JSON document.
"""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchproj import embed, encode, execution
from batchproj.collection.snapshot import Snapshot, read_snapshot, write_snapshot
from batchproj.collection.unit import DONE, Receipt, Unit, finish, read_inputs, write_features, write_part
from batchproj.objectstore import LIST_PAGE, Folder, Listed
from batchproj.schema import Modality, feature_schema, outcome_schema, vector_schema
from batchproj.source import listing
from batchproj.space import Member, ResolvedSpace, Space
from batchproj.stages import Job

DIM = 32
BUCKET = "s3://made-up"
CHANGED_ONE_IN = 1_000


STEPS = ("plan", "stand_in", "commit")


def clocks() -> tuple[float, float]:
    """Seconds that have passed, and of processors that this process has had: the first grow with others' load."""
    return time.monotonic(), time.process_time()


def space() -> ResolvedSpace:
    """Of an encoder that is never loaded."""
    encoder = {"kind": "text", "model": "package:none/model"}
    config = encode.parse_config(encoder, "made up")
    member = Member(Modality.TEXT, config, "sha256:0", DIM, "pooled", {"encoder": "none"}, {"vector": "none"}, None)
    return ResolvedSpace(Space(name="made-up", dim=DIM, text={"encoder": encoder}), {Modality.TEXT: member})


def pages(first: int, items: int, changed: int) -> Iterator[list[Listed]]:
    """What a store would answer, a thousand names at a time; the first `changed` have another version."""
    for start in range(first, first + items, LIST_PAGE):
        numbers = range(start, min(start + LIST_PAGE, first + items))
        keys = [(number, f"texts{number // LIST_PAGE:06d}/{number}.txt") for number in numbers]
        yield [
            Listed(f"{BUCKET}/{key}", key, 20 + number % 50_021, f"{number + (number < first + changed) * 10**12:032x}")
            for number, key in keys
        ]


def embedded(job: Job, unit: Unit) -> Receipt:
    """What a worker leaves of a unit, but for the vectors' meaning."""
    inputs, rows = read_inputs(job.folder, unit), unit.items
    member = job.members[Modality.TEXT]
    draw = np.random.default_rng(int(unit.name[:8], 16)).normal(size=(rows, DIM)).astype(np.float32)
    vectors = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    same = {"segment": 0, "modality": "text", "fingerprint": member.vector_fp, "run": unit.run}
    given = {name: inputs[name] for name in ("item", "uri", "pair", "metadata", "source_version")}
    columns: dict[str, Any] = {**given, "id": inputs["item"], "content_id": inputs["item"]}
    columns |= {name: pa.array([value] * rows) for name, value in same.items()}
    columns |= {name: pa.nulls(rows, pa.float32()) for name in ("start", "end")}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM)
    columns["feature"] = columns["vector"].cast(pa.list_(pa.float16(), DIM))
    columns |= {"status": pa.array(["embedded"] * rows), "segments": pa.array([1] * rows, pa.int32())}
    columns |= {"features": pa.array([unit.name] * rows)}
    columns |= {name: pa.nulls(rows, pa.string()) for name in ("text", "reason", "detail", "stage")}

    def table(schema: pa.Schema) -> pa.Table:
        return pa.table([columns[field.name] for field in schema], names=schema.names).cast(schema)

    features = write_features(job.folder, member.feature_fp, unit.name, table(feature_schema(DIM)))
    part = write_part(job.folder, unit.name, table(vector_schema(DIM)))
    told = {"embedded": rows, "quarantined": 0, "deferred": 0, "encoded": rows, "busy_s": 1.0}
    return finish(job.folder, Receipt(unit=unit, part=part, features=features, **told), table(outcome_schema()))


def run(collection: str, first: int, items: int, changed: int) -> dict[str, float]:
    """Embed one shard; call in a process of its own, whose peak memory it tells."""
    at: list[tuple[float, float]] = []

    def stand_in(job: Job, units: list[Unit], *_: object) -> Iterator[Receipt]:
        at.append(clocks())
        yield from (embedded(job, unit) for unit in units)
        at.append(clocks())

    listing.list_objects = lambda _: pages(first, items, changed)  # type: ignore[assignment]
    execution._run = stand_in  # type: ignore[assignment]
    started = clocks()
    report = embed.embed(BUCKET, collection, space(), embed.Options(), embed.Watch())
    ended = clocks()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    measured = {"embedded": report.embedded, "rows": report.rows, "peak_mib": round(int(peak.split()[1]) / 1024, 1)}
    for name, (began, over) in zip(STEPS, itertools.pairwise([started, *at, ended]), strict=True):
        measured |= {f"{name}_s": round(over[0] - began[0], 1), f"{name}_cpu_s": round(over[1] - began[1], 1)}
    return measured


def shard(number: int, items: int, receipts: Path) -> dict[str, Any]:
    """A first run and a rerun of one shard."""
    first = number * items
    measured: dict[str, Any] = {"shard": number, "items": items}
    with tempfile.TemporaryDirectory() as folder:
        for name, changed in (("first", 0), ("rerun", items // CHANGED_ONE_IN)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
                measured[name] = pool.submit(run, folder, first, items, changed).result()
        done = list(Path(folder).glob(f"units/000001/*/{DONE}"))
        with gzip.open(receipts, "wb") as kept:
            kept.writelines(file.read_bytes() + b"\n" for file in done)
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        measured |= {"units": len(done), "files": len(files), "bytes": sum(file.stat().st_size for file in files)}
    return measured


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "sum": round(sum(values), 1)}


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    names = ["peak_mib", *(f"{step}_{unit}" for step in STEPS for unit in ("s", "cpu_s"))]
    runs = {each: {name: spread([line[each][name] for line in lines]) for name in names} for each in ("first", "rerun")}
    sizes = {name: spread([line[name] for line in lines]) for name in ("units", "files", "bytes")}
    return {"shards": len(lines), "items": sum(line["items"] for line in lines), **sizes, **runs}


def run_shards(items: int, shards: int, file: Path) -> None:
    receipts = file.with_suffix(".receipts")
    receipts.mkdir(exist_ok=True)
    done = {line["shard"] for line in lines_of(file)}
    for number in sorted(set(range(shards)) - done):
        measured = shard(number, items, receipts / f"{number}.jsonl.gz")
        with file.open("a") as out:
            out.write(json.dumps(measured) + "\n")
        print(json.dumps(measured), file=sys.stderr, flush=True)
    print(json.dumps(summary(lines_of(file))))


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def together(file: Path) -> None:
    """One driver over all: its receipts, and the snapshot written and read."""
    before, started = resident_mib(), time.monotonic()
    receipts: list[Receipt] = []
    for name in sorted(file.with_suffix(".receipts").glob("*.jsonl.gz")):
        with gzip.open(name) as lines:
            receipts += (Receipt.model_validate_json(line) for line in lines)
    held, read_s = resident_mib() - before, time.monotonic() - started
    parts = [receipt.part for receipt in receipts if receipt.part is not None]
    features = [receipt.features for receipt in receipts if receipt.features is not None]
    whole = Snapshot(
        run="000001",
        parent=None,
        source=BUCKET,
        space="made-up",
        dim=DIM,
        fingerprints={},
        listed=sum(part.rows for part in parts),
        parts=parts,
        features=features,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(name)
        times = [time.monotonic()]
        write_snapshot(folder, whole)
        times.append(time.monotonic())
        size = next(Path(name).rglob("*.json")).stat().st_size
        before = resident_mib()
        again = read_snapshot(folder, whole.run)
        times.append(time.monotonic())
        snapshot_mib = resident_mib() - before
    assert again == whole
    print(
        json.dumps(
            {
                "items": whole.listed,
                "units": len(receipts),
                "receipts_mib": round(held, 1),
                "receipts_read_s": round(read_s, 1),
                "snapshot_bytes": size,
                "snapshot_mib": round(snapshot_mib, 1),
                "snapshot_written_s": round(times[1] - times[0], 1),
                "snapshot_read_s": round(times[2] - times[1], 1),
            }
        )
    )


def main() -> None:
    if sys.argv[1] == "run":
        run_shards(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        together(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
