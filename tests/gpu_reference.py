"""`python gpu_reference.py CONFIG MODALITY SEGMENTS OUT`: features of an encoder where no GPU is seen."""

from __future__ import annotations

import json
import sys

import numpy as np

from batchproj.encode import parse_config
from batchproj.media import Segment
from batchproj.schema import Modality
from batchproj.weights import resolve


def main(told: str, modality: str, segments: str, out: str) -> None:
    config = parse_config(json.loads(told), "test")
    encoder = config.build(resolve(config.model, None, None), Modality(modality), 1)
    with np.load(segments) as kept:
        given = [Segment(str(value) if value.dtype.kind == "U" else value) for value in kept.values()]
    tokens = {f"tokens{number}": each for number, each in enumerate(encoder.encode_tokens(given))}
    np.savez(out, pooled=encoder.encode(given), **tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
