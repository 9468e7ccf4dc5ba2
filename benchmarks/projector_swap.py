"""What another projector costs, against the full run: `python benchmarks/projector_swap.py 100000`.

So many different pictures are embedded with `builtin`; then every picture is overwritten with zeros of the same size
and time, so that reading one would put it into quarantine, and the collection is embedded with another projector, which
has to read and encode nothing. Both are whole commands, in processes of their own. Printed as JSON: seconds of both and
their ratio. With noise beside it the ratio says little: run it alone on the machine.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from batchproj.project import parse_config
from batchproj.space import open_space

FOLDER_ITEMS = 1_000
PX = 224


def draw(folder: Path, items: int) -> None:
    for number in range(items):
        file = folder / f"{number // FOLDER_ITEMS:05d}" / f"{number:08d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        blocks = np.random.default_rng(number).integers(0, 255, (7, 7, 3), dtype=np.uint8)
        picture = io.BytesIO()
        Image.fromarray(blocks).resize((PX, PX), Image.Resampling.NEAREST).save(picture, "PNG", compress_level=1)
        file.write_bytes(picture.getvalue())


def blank(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        known = file.stat()
        file.write_bytes(bytes(known.st_size))
        os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))


def other_space(folder: Path) -> None:
    """`builtin` with another projector for images, in a file as `train` writes it."""
    folder.mkdir()
    builtin = open_space("builtin").space
    assert builtin.image is not None
    parse_config({"kind": "linear", "in_dim": 1280, "out_dim": builtin.dim}).build().save(folder / "image.safetensors")
    projector = {"kind": "linear", "weights": "image.safetensors"}
    member = {"encoder": builtin.image.encoder, "projector": projector}
    document = {"name": "other", "dim": builtin.dim, "image": member}
    (folder / "space.yaml").write_text(yaml.safe_dump(document))


def embed(*arguments: object) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "batchproj.cli", "embed", *map(str, arguments), "--json"]
    started = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.monotonic() - started, json.loads(done.stdout)


def main() -> None:
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as scratch:
        pictures, collection, space = (Path(scratch) / name for name in ("pictures", "c", "other"))
        draw(pictures, items)
        other_space(space)
        full, first = embed(pictures, collection, "--space", "builtin")
        blank(pictures)
        swap, second = embed(pictures, collection, "--space", space)
    assert first["embedded"] == items
    assert second["reprojected"] == second["rows"] == items
    assert second["encode_calls"] == {}
    assert second["quarantined"] == 0
    print(
        json.dumps(
            {
                "items": items,
                "full_seconds": round(full, 1),
                "swap_seconds": round(swap, 1),
                "times_faster": round(full / swap, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
