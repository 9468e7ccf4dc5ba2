"""sentence-transformers as it comes: all texts in a list, `encode` with its defaults."""

from __future__ import annotations

import time

from batchproj.bench import models
from batchproj.bench.contender import Job, Stopwatch, main, write_features, write_outcome
from batchproj.bench.reading import names, read
from batchproj.schema import Modality


def run(job: Job) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(models.model_folder(Modality.TEXT)), device="cpu")
    ids = names(job.source)
    ready, watch = time.time(), Stopwatch()
    texts = [read(job.source, name).decode() for name in ids]
    watch.lap("decode")
    features = model.encode(texts)
    watch.lap("model")
    write_features(job, ids, features)
    watch.lap("write")
    write_outcome(job, watch.outcome(ready))


if __name__ == "__main__":
    main(run)
