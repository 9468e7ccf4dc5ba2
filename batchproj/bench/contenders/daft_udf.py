"""Daft with the model in a class, as its guide to stateful UDFs and its example of text embeddings show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from batchproj.bench import models
from batchproj.bench.contender import Job, collect_parquet, main, mark_done, mark_ready
from batchproj.bench.daft_source import files
from batchproj.bench.workloads import segment_ids
from batchproj.schema import Modality

ROWS = 512
"""Rows that Daft hands over at once, as in its example."""
BATCH = 64
SOUNDS = 8

DIMS = {Modality.TEXT: 384, Modality.IMAGE: 1280, Modality.AUDIO: 768}


def run(job: Job) -> None:
    import daft

    embedding = daft.DataType.embedding(daft.DataType.float32(), DIMS[job.modality])
    frame = files(job.source)
    if job.modality is Modality.AUDIO:
        frame = _windows(frame)
        inputs = daft.col("samples")
    else:
        inputs = daft.col("data")
    embedder = _classes(embedding)[job.modality](str(job.out))
    frame.select(daft.col("path").alias("id"), embedder(inputs).alias("feature")).write_parquet(
        str(job.out / "parquet")
    )
    mark_done(job.out)


def _windows(frame: Any) -> Any:
    """One row for each 30 s of a sound."""
    import daft

    kind = daft.DataType.list(
        daft.DataType.struct({"id": daft.DataType.string(), "samples": daft.DataType.list(daft.DataType.float32())})
    )

    @daft.func(return_dtype=kind)  # type: ignore[untyped-decorator]
    def cut(path: str, data: bytes) -> list[dict[str, Any]]:
        windows = models.samples(data)
        ids = segment_ids(path, len(windows))
        return [{"id": name, "samples": window} for name, window in zip(ids, windows, strict=True)]

    rows = frame.select(cut(daft.col("path"), daft.col("data")).alias("window")).explode("window")
    return rows.select(daft.col("window")["id"].alias("path"), daft.col("window")["samples"].alias("samples"))


def _classes(embedding: Any) -> dict[Modality, Any]:
    """Defined here since Daft may not be installed; it pickles them by value."""
    import daft

    @daft.cls(max_concurrency=1)
    class Texts:
        def __init__(self, out: str) -> None:
            from sentence_transformers import SentenceTransformer

            self.model = SentenceTransformer(str(models.model_folder(Modality.TEXT)), device="cpu")
            mark_ready(Path(out))

        @daft.method.batch(return_dtype=embedding, batch_size=ROWS)  # type: ignore[untyped-decorator]
        def __call__(self, data: Any) -> Any:
            return self.model.encode([each.decode() for each in data.to_pylist()], batch_size=BATCH)

    @daft.cls(max_concurrency=1)
    class Images:
        def __init__(self, out: str) -> None:
            self.network = models.image_network()
            self.transform = models.image_transform()
            mark_ready(Path(out))

        @daft.method.batch(return_dtype=embedding, batch_size=BATCH)  # type: ignore[untyped-decorator]
        def __call__(self, data: Any) -> Any:
            import torch
            from PIL import Image

            pictures = [Image.open(io.BytesIO(each)).convert("RGB") for each in data.to_pylist()]
            with torch.inference_mode():
                return self.network(torch.stack([self.transform(picture) for picture in pictures])).numpy()

    @daft.cls(max_concurrency=1)
    class Sounds:
        def __init__(self, out: str) -> None:
            self.model, self.extractor = models.whisper(0), models.feature_extractor()
            mark_ready(Path(out))

        @daft.method.batch(return_dtype=embedding, batch_size=SOUNDS)  # type: ignore[untyped-decorator]
        def __call__(self, samples: Any) -> Any:
            import numpy as np

            windows = [np.asarray(each, np.float32) for each in samples.to_pylist()]
            frames = models.whisper_frames(self.model, models.padded_mels(self.extractor, windows))
            return models.mean_and_spread(frames, windows)

    return {Modality.TEXT: Texts, Modality.IMAGE: Images, Modality.AUDIO: Sounds}


if __name__ == "__main__":
    main(run, collect_parquet)
