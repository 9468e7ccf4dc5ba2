"""Daft around the encoder that batchproj's workers call, see `ray_data_equal`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchproj.bench import models
from batchproj.bench.contender import Job, collect_parquet, main, mark_done, mark_ready
from batchproj.bench.contenders.daft_udf import DIMS
from batchproj.bench.contenders.ray_data_equal import BATCH
from batchproj.bench.daft_source import files


def run(job: Job) -> None:
    import daft

    rows, modality, cores = BATCH[job.modality], job.modality, job.cores

    @daft.cls(max_concurrency=1)
    class Encoder:
        def __init__(self, out: str) -> None:
            self.features = models.features_of(modality, cores)
            mark_ready(Path(out))

        @daft.method.batch(  # type: ignore[untyped-decorator]
            return_dtype=daft.DataType.embedding(daft.DataType.float32(), DIMS[modality]), batch_size=rows
        )
        def __call__(self, data: Any) -> Any:
            return self.features(data.to_pylist())

    frame = files(job.source)
    feature = Encoder(str(job.out))(daft.col("data")).alias("feature")
    frame.select(daft.col("path").alias("id"), feature).write_parquet(str(job.out / "parquet"))
    mark_done(job.out)


if __name__ == "__main__":
    main(run, collect_parquet)
