"""Ray Data around the encoder that batchproj's workers call: the same model function, handed out by other means.

As `ray_data`, with as many threads as there are cores, which Ray does not give an actor by itself, and batches as large
as a unit of batchproj's, in which the encoder finds texts of one length. Its class decodes as well, in threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchproj.bench import models
from batchproj.bench.contender import Job, collect_parquet, main, mark_done, mark_ready
from batchproj.bench.contenders.ray_data import file_system
from batchproj.schema import Modality

BATCH = {Modality.TEXT: 1_024, Modality.IMAGE: 256}

Row = dict[str, Any]


class _Encoder:
    def __init__(self, out: Path, modality: Modality, cores: int) -> None:
        self._features = models.features_of(modality, cores)
        mark_ready(out)

    def __call__(self, batch: Row) -> Row:
        return {"id": batch["path"], "feature": self._features(list(batch["bytes"]))}


def run(job: Job) -> None:
    import ray

    ray.init(address="local", include_dashboard=False)
    (
        ray.data.read_binary_files(job.source, include_paths=True, **file_system(job.source))
        .map_batches(
            _Encoder,
            batch_size=BATCH[job.modality],
            compute=ray.data.ActorPoolStrategy(size=1),
            fn_constructor_args=(job.out, job.modality, job.cores),
        )
        .write_parquet(str(job.out / "parquet"))
    )
    mark_done(job.out)
    ray.shutdown()


if __name__ == "__main__":
    main(run, collect_parquet)
