"""Ray Data as its user guides show batch inference: `read_*`, a class in `map_batches`, `write_parquet`.

After "Working with Text", "Working with Images" and "End-to-end: Offline Batch Inference" of its documentation: the
model in `__init__`, a batch of columns as numpy arrays in `__call__`, preprocessing in a `map` of its own, actors by
number (one fewer than cores here, since tasks need one too).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from batchproj.bench import models
from batchproj.bench.contender import Job, collect_parquet, main, mark_done, mark_ready
from batchproj.bench.workloads import segment_ids
from batchproj.schema import Modality

BATCH = 64
SOUNDS = 8

Row = dict[str, Any]


class _Texts:
    def __init__(self, out: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(models.model_folder(Modality.TEXT)), device="cpu")
        mark_ready(out)

    def __call__(self, batch: Row) -> Row:
        texts = [data.decode() for data in batch["bytes"]]
        return {"id": batch["path"], "feature": self.model.encode(texts)}


class _Images:
    def __init__(self, out: Path) -> None:
        self.network = models.image_network()
        mark_ready(out)

    def __call__(self, batch: Row) -> Row:
        import torch

        with torch.inference_mode():
            return {"id": batch["path"], "feature": self.network(torch.from_numpy(batch["pixels"])).numpy()}


class _Sounds:
    def __init__(self, out: Path) -> None:
        self.model, self.extractor = models.whisper(1), models.feature_extractor()
        mark_ready(out)

    def __call__(self, batch: Row) -> Row:
        windows = list(batch["samples"])
        mels = models.padded_mels(self.extractor, windows)
        frames = models.whisper_frames(self.model, mels)
        return {"id": batch["path"], "feature": models.mean_and_spread(frames, windows)}


def _windows(row: Row) -> list[Row]:
    windows = models.samples(row["bytes"])
    ids = segment_ids(row["path"], len(windows))
    return [{"path": name, "samples": window} for name, window in zip(ids, windows, strict=True)]


def run(job: Job) -> None:
    import ray

    ray.init(address="local", include_dashboard=False)
    actors: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(size=max(1, job.cores - 1)),
        "fn_constructor_args": (job.out,),
    }
    source: Any = {"paths": job.source, "include_paths": True, **file_system(job.source)}
    if job.modality is Modality.TEXT:
        embedded = ray.data.read_binary_files(**source).map_batches(_Texts, batch_size=BATCH, **actors)
    elif job.modality is Modality.IMAGE:
        transform = models.image_transform()

        def preprocess(row: Row) -> Row:
            from PIL import Image

            return {"path": row["path"], "pixels": transform(Image.fromarray(row["image"])).numpy()}

        pixels = ray.data.read_images(**source, mode="RGB").map(preprocess)
        embedded = pixels.map_batches(_Images, batch_size=BATCH, **actors)
    else:
        windows = ray.data.read_binary_files(**source).flat_map(_windows)
        embedded = windows.map_batches(_Sounds, batch_size=SOUNDS, **actors)
    embedded.write_parquet(str(job.out / "parquet"))
    mark_done(job.out)
    ray.shutdown()


def file_system(source: str) -> Row:
    """pyarrow's S3 does not take the endpoint from the standard variables by itself."""
    if not source.startswith("s3://"):
        return {}
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    scheme, _, host = endpoint.partition("://")
    return {"filesystem": S3FileSystem(endpoint_override=host, scheme=scheme, region=os.environ["AWS_REGION"])}


if __name__ == "__main__":
    main(run, collect_parquet)
