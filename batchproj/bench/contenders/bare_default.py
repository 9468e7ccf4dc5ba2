"""The loop that people write: one file after the other, batches of 64 in the order they come, fp32.

With `window: real` it is no contender but the reference for those that hear short sounds at their length: mel
spectrograms of transformers, cut, each sound alone.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np

from batchproj.bench import models
from batchproj.bench.contender import Job, Outcome, Stopwatch, main, write_features, write_outcome
from batchproj.bench.reading import names, read
from batchproj.bench.workloads import segment_ids
from batchproj.schema import Modality

BATCH = 64
SOUNDS = 8
"""30 s windows at once: 64 of them would be 2 GB between Whisper's layers."""


def run(job: Job) -> None:
    {Modality.TEXT: _texts, Modality.IMAGE: _images, Modality.AUDIO: _sounds}[job.modality](job)


def _batches(ids: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _texts(job: Job) -> None:
    import torch

    tokenizer, model = models.text_model()
    ids = names(job.source)
    ready, watch = time.time(), Stopwatch()
    features, real, padded = [], 0, 0
    for batch in _batches(ids, BATCH):
        texts = [read(job.source, name).decode() for name in batch]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=models.MAX_TOKENS, return_tensors="pt")
        watch.lap("decode")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
            features.append(models.mean_pooled(states, tokens["attention_mask"]).numpy())
        real, padded = real + int(tokens["attention_mask"].sum()), padded + tokens["attention_mask"].numel()
        watch.lap("model")
    _finish(job, ids, features, watch, ready, (real, padded))


def _images(job: Job) -> None:
    import torch
    from PIL import Image

    network = models.image_network()
    transform = models.image_transform()
    ids = names(job.source)
    ready, watch = time.time(), Stopwatch()
    features = []
    for batch in _batches(ids, BATCH):
        pictures = [Image.open(io.BytesIO(read(job.source, name))).convert("RGB") for name in batch]
        pixels = torch.stack([transform(picture) for picture in pictures])
        watch.lap("decode")
        with torch.no_grad():
            features.append(network(pixels).numpy())
        watch.lap("model")
    _finish(job, ids, features, watch, ready)


def _sounds(job: Job) -> None:
    model, extractor = models.whisper(job.cores), models.feature_extractor()
    segments = job.segments
    ids = names(job.source)
    ready, watch = time.time(), Stopwatch()
    features = []
    for batch in _batches(ids, SOUNDS):
        windows = [window for name in batch for window in models.samples(read(job.source, name))]
        for start in range(0, len(windows), 1 if job.window == "real" else SOUNDS):
            some = windows[start : start + (1 if job.window == "real" else SOUNDS)]
            mels = models.padded_mels(extractor, some)
            if job.window == "real":
                mels = mels[:, :, : models.real_mel_frames(some[0])]
            watch.lap("decode")
            features.append(models.mean_and_spread(models.whisper_frames(model, mels), some))
            watch.lap("model")
    _finish(job, [one for name in ids for one in segment_ids(name, segments[name])], features, watch, ready)


def _finish(
    job: Job,
    ids: list[str],
    features: list[models.Array],
    watch: Stopwatch,
    ready: float,
    tokens: tuple[int, int] | None = None,
) -> None:
    write_features(job, ids, np.concatenate(features))
    watch.lap("write")
    outcome: Outcome = watch.outcome(ready, *(tokens or ()))
    write_outcome(job, outcome)


if __name__ == "__main__":
    main(run)
