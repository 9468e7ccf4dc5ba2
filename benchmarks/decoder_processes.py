"""What decoding in processes of its own costs: units of pictures, of sounds, of films, against threads that decode.

    python benchmarks/decoder_processes.py [ROUNDS]

One loaded worker of the builtin space each way, the same unit again and again, rounds interleaved and their order
turned; equal vectors first. Prints, for each kind, the median ratio of the rounds' items per second (processes over
threads) with its range, and that of the processor time, children's included, as one JSON document.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
from PIL import Image

from batchproj.collection.unit import Unit
from batchproj.decode.child import Work
from batchproj.decode.item import Piece, decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decoding import Fetched
from batchproj.embedding import UnitWorker
from batchproj.schema import Modality
from batchproj.space import open_space, resolve

THREADS = 2


class InThreads:
    """As `DecoderProcess`, where the caller's thread decodes."""

    def __init__(self, work: Work, _turns: object) -> None:
        self._work = work

    def pieces(self, data: bytes) -> Iterator[Piece]:
        assert self._work.modality is not None
        assert self._work.spec is not None
        return decode_pieces(data, self._work.modality, self._work.spec, self._work.limits, self._work.piece)


def picture(seed: int, size: int, kind: str) -> bytes:
    """Smooth shapes and noise: neither as small as a drawing nor as large as noise alone."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-6, 7, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def sound(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    soundfile.write(file, rng.uniform(-0.2, 0.2, int(22_050 * rng.uniform(1, 3))), 22_050, format="FLAC")
    return file.getvalue()


CONTENTS = {
    "image-small: 512 PNG of 72 to 300 px": (
        Modality.IMAGE,
        lambda: [picture(n, 72 + n * 228 // 511, "PNG") for n in range(512)],
    ),
    "image-camera: 48 JPEG of 1,600 px": (Modality.IMAGE, lambda: [picture(n, 1_600, "JPEG") for n in range(48)]),
    "audio-short: 128 FLAC of 1 to 3 s": (Modality.AUDIO, lambda: [sound(n) for n in range(128)]),
}


def worker(modality: Modality) -> UnitWorker:
    space = resolve(open_space("builtin"))
    made = UnitWorker(space.members[modality], space.dim, frozenset(space.members), Limits(), THREADS)
    made.load()
    return made


def cpu_s() -> float:
    """Of this process and its children that live: the decoders do."""
    ticks = 0
    children = Path("/proc/self/task").glob("*/children")
    for pid in ["self", *(pid for each in children for pid in each.read_text().split())]:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    report = {}
    for name, (modality, make) in CONTENTS.items():
        contents = make()
        items = [Fetched(f"{n:04}", f"{n:04}", None, "v", data, f"{n}", "") for n, data in enumerate(contents)]
        unit = Unit(name="u", run="1", task="embed", modality=modality, items=len(items), bytes=0)
        with mock.patch("batchproj.decoding.DecoderProcess", InThreads):
            ways = {"threads": worker(modality)}
        ways["processes"] = worker(modality)
        vectors = {way: each.embed(unit, items, None, lambda _: None).vectors for way, each in ways.items()}
        assert vectors["threads"].equals(vectors["processes"])
        assert vectors["threads"].num_rows == len(items)
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way in sorted(ways, reverse=bool(number % 2)):
                begun, used = time.perf_counter(), cpu_s()
                ways[way].embed(unit, items, None, lambda _: None)
                taken[way].append((time.perf_counter() - begun, cpu_s() - used))
        pairs = list(zip(taken["threads"], taken["processes"], strict=True))
        speed = sorted(threads[0] / processes[0] for threads, processes in pairs)
        work = sorted(processes[1] / threads[1] for threads, processes in pairs)
        report[name] = {
            "speed": [round(float(np.median(speed)), 3), round(speed[0], 3), round(speed[-1], 3)],
            "cpu": [round(float(np.median(work)), 3), round(work[0], 3), round(work[-1], 3)],
        }
        print(name, report[name], file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
