"""What the real-length window saves: Whisper tiny.en on short clips, cut to their length and padded to 30 s.

    python benchmarks/whisper_window.py CORPUS_FOLDER

Interleaved rounds over the same clips, one thread setting; prints the median ratio of the rounds, its range, and the
cosine between the two mean-pooled features, as one JSON document. Times alone mean nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from batchproj.decode.audio import stream_audio
from batchproj.decode.limits import Limits
from batchproj.encode import parse_config
from batchproj.schema import Modality
from batchproj.space import open_space
from batchproj.weights import resolve

CLIPS = 16
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    files = sorted(parser.parse_args().corpus.rglob("*.flac"))
    files = files[:: max(1, len(files) // CLIPS)][:CLIPS]
    member = open_space("builtin").space.audio
    assert member is not None
    encoders = {}
    for window in ("real", "padded"):
        config = parse_config({**member.encoder, "window": window, "pooling": "mean"}, window)
        model = resolve(config.model, config.revision, config.digest)
        encoders[window] = config.build(model, Modality.AUDIO, threads=2)
    segments = [next(stream_audio(file.read_bytes(), encoders["real"].spec, Limits())) for file in files]
    seconds: dict[str, list[float]] = {window: [] for window in encoders}
    features = {window: encoder.encode(segments) for window, encoder in encoders.items()}
    for _ in range(ROUNDS):
        for window, encoder in encoders.items():
            started = time.perf_counter()
            encoder.encode(segments)
            seconds[window].append(time.perf_counter() - started)
    ratios = sorted(padded / real for real, padded in zip(seconds["real"], seconds["padded"], strict=True))
    unit = {window: rows / np.linalg.norm(rows, axis=1, keepdims=True) for window, rows in features.items()}
    cosines = (unit["real"] * unit["padded"]).sum(axis=1)
    lengths = [float(segment.end or 0) for segment in segments]
    print(
        json.dumps(
            {
                "clips": len(files),
                "median_clip_s": round(float(np.median(lengths)), 2),
                "padded_over_real": round(float(np.median(ratios)), 1),
                "range": [round(ratios[0], 1), round(ratios[-1], 1)],
                "cosine_min_mean": [round(float(cosines.min()), 3), round(float(cosines.mean()), 3)],
            }
        )
    )


if __name__ == "__main__":
    main()
