"""What a contender is told, and what it leaves behind.

`python -m batchproj.bench.contenders.NAME JOB.json` embeds every file of `source`. The one who started it
notes when that was and when the process ended. Afterwards, untimed, the same with `collect` brings what the
contender wrote in its own way into the form that all are compared in, two files in `out`:

    features.parquet    id (string), feature (list<float>)
    outcome.json        when the model was ready, when the last feature was written, and what else it can tell
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from batchproj.schema import Modality

FEATURES = "features.parquet"
OUTCOME = "outcome.json"

Window = Literal["padded", "real"]
"""Whether Whisper hears a short sound in 30 s of silence, as it was trained, or at its length: two preprocessings,
with features of their own (cosine 0.93)."""


class Job(BaseModel):
    """`source` is a folder, or an s3:// prefix reached by the AWS variables; `out` an empty folder.

    To project again, `collection` is a copy of one whose features are cached, made of the table `source`, and
    `space` the space with the other projector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    workload: str
    modality: Modality
    source: str
    manifest: Path
    out: Path
    cores: int
    window: Window = "padded"
    collection: Path | None = None
    space: Path | None = None

    @property
    def segments(self) -> dict[str, int]:
        """Vectors of each item, in the order of the manifest."""
        table = pq.read_table(self.manifest, columns=["id", "segments"])
        return dict(zip(table["id"].to_pylist(), table["segments"].to_pylist(), strict=True))


class Outcome(BaseModel):
    """`ready`, Unix time: the model is loaded and its first item about to be processed; `done`: the last feature is
    written. Frameworks read, and some decode, while their models load: the steady part of a job of few items
    flatters them, the whole does not.

    Seconds are those of the thread that waits for its input, computes, and writes, where it can tell;
    `real_tokens` of the input went through the model as `padded_tokens`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ready: float
    done: float
    decode_s: float | None = None
    model_s: float | None = None
    write_s: float | None = None
    real_tokens: int | None = None
    padded_tokens: int | None = None


def main(run: Callable[[Job], None], collect: Callable[[Job], None] | None = None) -> None:
    """What a contender's module ends with."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    if sys.argv[2:] == ["collect"]:
        if collect is not None:
            collect(job)
    else:
        run(job)


def write_features(job: Job, ids: Sequence[str], features: npt.NDArray[np.float32]) -> None:
    """Write features (N, D) of `ids`."""
    values = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "feature": column}), job.out / FEATURES)


def write_outcome(job: Job, outcome: Outcome) -> None:
    (job.out / OUTCOME).write_text(outcome.model_dump_json())


def mark_ready(out: Path) -> None:
    """From any process of a contender: its model is loaded. The earliest counts."""
    now = time.time()
    (out / f"ready-{now:.6f}").touch()


def mark_done(out: Path) -> None:
    (out / f"done-{time.time():.6f}").touch()


def marked(out: Path) -> Outcome:
    """When the first model was loaded and when the last feature was written, as marked."""
    ready, done = (
        sorted(float(file.name.partition("-")[2]) for file in out.glob(f"{kind}-*")) for kind in ("ready", "done")
    )
    return Outcome(ready=ready[0], done=done[-1])


def collect_parquet(job: Job) -> None:
    """Of contenders that write Parquet files with columns `id` (a path or URL) and `feature` into out/parquet."""
    table = pq.read_table(job.out / "parquet", columns=["id", "feature"])
    ids = [relative(job.source, name) for name in table["id"].to_pylist()]
    features = np.array([np.asarray(row, np.float32) for row in table["feature"].to_pylist()], np.float32)
    write_features(job, ids, features)
    write_outcome(job, marked(job.out))


def relative(source: str, name: str) -> str:
    """A path or URL as a library gives it back -> the id in the manifest."""
    inside = source.partition("://")[2] or source
    _, found, rest = name.partition(f"{inside.strip('/')}/")
    return rest if found else name


class Stopwatch:
    """Adds up seconds spent in parts of a loop."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"decode": 0.0, "model": 0.0, "write": 0.0}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """All since the lap before was this part."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def outcome(self, ready: float, real_tokens: int | None = None, padded_tokens: int | None = None) -> Outcome:
        return Outcome(
            ready=ready,
            done=time.time(),
            decode_s=self.seconds["decode"],
            model_s=self.seconds["model"],
            write_s=self.seconds["write"],
            real_tokens=real_tokens,
            padded_tokens=padded_tokens,
        )
