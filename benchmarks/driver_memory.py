"""Does the driver's memory grow with the corpus? Embeds N texts and N/40 pictures, then twice as many.

    python benchmarks/driver_memory.py --texts 20000

Prints the driver process's peak resident memory (VmHWM of /proc) for both sizes, as one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES_PER_TEXT = 1 / 40


def write_corpus(folder: Path, texts: int) -> None:
    """Tiny texts in folders of a thousand, and pictures of 64 x 64 noise."""
    draw = np.random.default_rng(0)
    for number in range(texts):
        path = folder / f"texts{number // 1000:03d}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"note {number} about topic {number % 97}")
    (folder / "pictures").mkdir()
    for number in range(int(texts * PICTURES_PER_TEXT)):
        pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")


def peak_mib(source: Path, collection: Path) -> tuple[float, dict[str, object]]:
    """Run one embed; peak resident memory of its driver process alone, and its report."""
    command = [sys.executable, "-m", "batchproj.cli", "embed", str(source), str(collection), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.2)
    assert process.stdout is not None
    return round(peak / 1024, 1), json.loads(process.stdout.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    texts = parser.parse_args().texts
    results = []
    for count in (texts, 2 * texts):
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(Path(folder) / "corpus", count)
            peak, report = peak_mib(Path(folder) / "corpus", Path(folder) / "collection")
            results.append({"items": report["items"], "rows": report["rows"], "driver_peak_mib": peak})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
