"""Daft's `embed_text` as it comes, provider `transformers`, with the model's folder in the place of its name."""

from __future__ import annotations

from typing import Any

from batchproj.bench import models
from batchproj.bench.contender import Job, collect_parquet, main, mark_done, mark_ready
from batchproj.bench.daft_source import files
from batchproj.schema import Modality


def run(job: Job) -> None:
    import daft
    from daft.ai.transformers.protocols.text_embedder import TransformersTextEmbedder
    from daft.functions import embed_text

    loaded = TransformersTextEmbedder.__init__

    def load(self: Any, *args: Any, **options: Any) -> None:
        loaded(self, *args, **options)
        mark_ready(job.out)

    TransformersTextEmbedder.__init__ = load  # Daft has no hook there, and nothing else tells when it is loaded
    folder = str(models.model_folder(Modality.TEXT))
    feature = embed_text(daft.col("data").cast(daft.DataType.string()), provider="transformers", model=folder)
    files(job.source).select(daft.col("path").alias("id"), feature.alias("feature")).write_parquet(
        str(job.out / "parquet")
    )
    mark_done(job.out)


if __name__ == "__main__":
    main(run, collect_parquet)
