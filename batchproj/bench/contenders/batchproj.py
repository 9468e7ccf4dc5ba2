"""The real command, with the default recipe and the builtin space, into a new collection on disk.

When it is ready is when the first worker with its model loaded takes up a unit, done when the last unit's files are
there: what comes after, the table and the switch, is in the whole, not in the steady part. Units are read ahead,
so that some may be there before the models are, as with every framework here.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from batchproj.bench.contender import Job, Outcome, main, relative, write_features, write_outcome
from batchproj.bench.workloads import segment_ids
from batchproj.collection import layout
from batchproj.collection.cache import live_features
from batchproj.collection.unit import Receipt, Unit, read_inputs
from batchproj.features import from_column
from batchproj.objectstore import Folder
from batchproj.schema import Modality


def run(job: Job) -> None:
    """Becomes the command."""
    command = [sys.executable, "-m", "batchproj.cli", "embed", job.source, _collection(job)]
    if job.space is not None:
        command += ["--space", str(job.space), "--force"]  # another projector at random may find worse
    os.execv(sys.executable, command)


def _collection(job: Job) -> str:
    return str(job.collection or job.out / "collection")


def collect(job: Job) -> None:
    """Features from its cache (vectors, where it projected again), times from the receipts of its units."""
    from batchproj.index import live_snapshot

    folder = Folder(_collection(job))
    snapshot = live_snapshot(folder)
    assert snapshot is not None, "the run is live"
    receipts = _receipts(folder, snapshot.run)
    if job.collection is not None:
        _collect_vectors(job)
    else:
        cached = live_features(folder, snapshot, job.modality)
        assert cached is not None, "something was embedded"
        segments = job.segments
        ids = []
        for uri, number in zip(cached["uri"].to_pylist(), cached["segment"].to_pylist(), strict=True):
            name = relative(job.source, uri)
            ids.append(segment_ids(name, segments[name])[number])
        write_features(job, ids, np.asarray(from_column(cached["feature"]), np.float32))
    tokens = _tokens(job, folder, receipts) if job.modality is Modality.TEXT and job.collection is None else None
    write_outcome(job, _outcome(receipts, tokens))


def _receipts(folder: Folder, run: str) -> list[Receipt]:
    units = [name.split("/")[0] for name in folder.names(layout.units(run))]
    files = [layout.unit_file(run, unit, "done.json") for unit in sorted(set(units))]
    return [Receipt.model_validate_json(folder.read(file)) for file in files]


def _outcome(receipts: list[Receipt], tokens: tuple[int, int] | None) -> Outcome:
    spans = [span for receipt in receipts for span in receipt.spans]
    real, padded = tokens or (None, None)
    return Outcome(
        ready=min(span.began for span in spans if span.stage in ("embed", "project")),
        done=max(span.ended for span in spans),
        decode_s=sum(receipt.busy_s - receipt.model_s for receipt in receipts),
        model_s=sum(receipt.model_s for receipt in receipts),
        write_s=sum(span.seconds for span in spans if span.stage == "write"),
        real_tokens=real,
        padded_tokens=padded,
    )


def _collect_vectors(job: Job) -> None:
    import batchproj

    table = batchproj.open(_collection(job)).table().select(["id", "vector"])
    write_features(job, table["id"].to_pylist(), np.stack(table["vector"].to_numpy()).astype(np.float32))


def _tokens(job: Job, folder: Folder, receipts: list[Receipt]) -> tuple[int, int]:
    """Tokens of the texts, and of the rows that its encoder makes of them: its own packing, unit by unit as in
    the run; this model takes none that is too long to be packed."""
    from batchproj.bench.models import MAX_TOKENS, model_folder
    from batchproj.bench.reading import read_many
    from batchproj.packed_texts import pack
    from batchproj.tokens import load_tokenizer
    from batchproj.torch_runtime import packed_tokens

    tokenizer = load_tokenizer(model_folder(Modality.TEXT), MAX_TOKENS)
    real, padded = 0, 0
    for unit in _units(receipts):
        uris = read_inputs(folder, unit)["uri"].to_pylist()
        texts = [data.decode() for data in read_many(job.source, [relative(job.source, uri) for uri in uris])]
        lengths = [len(row) for row in tokenizer.ids(texts)]
        real += sum(lengths)
        padded += sum(row.tokens for row in pack(lengths, packed_tokens(WIDTH)))
    return real, padded


WIDTH = 384
"""Of MiniLM's states; with it the encoder sizes its rows."""


def _units(receipts: list[Receipt]) -> list[Unit]:
    return [receipt.unit for receipt in receipts if receipt.unit.task == "embed"]


if __name__ == "__main__":
    main(run, collect)
