"""Small files that claim, or become, very much: refused before memory is spent on them, or decoded in little."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hostile import RATE, archive, drawn, png, saved, zeros_png
from long_item import peak_mib
from PIL import Image
from whole_item import decode, sniff

from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec
from batchproj.recipe import Recipe
from batchproj.schema import Modality, Reason

WANTED = ImageSpec(224, 224, 224)
PEAK_MIB = 1_500
SECONDS = 10


def fault(data: bytes, limits: Limits | None = None) -> ItemFault:
    with pytest.raises(ItemFault) as raised:
        decode_image(data, WANTED, limits or Limits())
    return raised.value


@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 10_000), (60_000, 60_000), (1, 20_000), (20_000, 1), (64_001, 1_000)]
)
def test_a_picture_is_refused_by_its_header_before_anything_of_its_size_is_allocated(width: int, height: int) -> None:
    data = zeros_png(width, height) if width == height == 10_000 else png(width, height, 8, 2, b"\0")
    assert len(data) < 400_000
    tracemalloc.start()
    refused = fault(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.reason is Reason.TOO_LARGE
    assert f"{width} x {height}" in refused.detail
    assert peak < 2_000_000


def test_limits_are_fields_of_the_recipe() -> None:
    narrow = Recipe.model_validate({"limits": {"image_ratio": 1, "image_pixels": 10_000}}).limits
    assert "one edge is at most 1 times the other" in fault(saved(drawn(0), "PNG"), narrow).detail
    assert "the limit is 10000 pixels" in fault(saved(drawn(0, 101, 101), "PNG"), narrow).detail
    with pytest.raises(ValueError, match="image_ratio"):
        Recipe.model_validate({"limits": {"image_ratio": 0.5}})


@pytest.mark.parametrize("kind", ["gz", "zip", "tgz", "tar"])
@pytest.mark.parametrize("name", ["x.txt", "x.jpg", "x", "x.mp4"])
def test_an_archive_is_known_and_not_unpacked(kind: str, name: str) -> None:
    data = archive_of(kind)
    tracemalloc.start()
    with pytest.raises(ItemFault) as raised:
        sniff(data, name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raised.value.reason is Reason.UNSUPPORTED_FORMAT
    assert peak < 1_000_000


@functools.cache
def archive_of(kind: str) -> bytes:
    return archive(kind)


def three_hours(path: Path) -> Path:
    """Silence, in a megabyte."""
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC", subtype="PCM_16") as file:
        minute: npt.NDArray[np.int16] = np.zeros(60 * RATE, np.int16)
        for _ in range(180):
            file.write(minute)
    return path


def test_bombs_take_a_worker_little_memory_and_few_seconds(tmp_path: Path) -> None:
    """In a process that does nothing else: the largest pictures that are taken at all, and a long silence."""
    side = 8_000
    bombs = {
        "zeros.png": zeros_png(side, side),
        "palette.png": png(side, side, 1, 0, bytes((1 + side // 8) * side)),
        "clear.png": png(side, side, 8, 6, bytes((1 + 4 * side) * side), level=1),
        "deep.png": png(side, side, 16, 0, bytes((1 + 2 * side) * side), level=1),
        "huge.jpg": saved(Image.new("RGB", (10_000, 10_000), (9, 90, 200)), "JPEG"),
        "refused.png": zeros_png(10_000, 10_000),
    }
    bombs |= {f"clear{number}.png": bombs["clear.png"] for number in range(4)}
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    three_hours(tmp_path / "silence.flac")
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 5_000_000
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["outcomes"] == {
        **dict.fromkeys(bombs, "1 segments"),
        "refused.png": "too_large",
        "silence.flac": "silent",
    }
    assert told["peak_mib"] < PEAK_MIB
    assert max(told["seconds"].values()) < SECONDS, told["seconds"]


def main(folder: str) -> None:
    """Decode every file there as a decoder process does, one after the other."""
    specs = {Modality.IMAGE: WANTED, Modality.AUDIO: AudioSpec(RATE, 30.0, skip_silence=True)}
    outcomes, seconds = {}, {}

    def decoded(file: Path) -> None:
        begun, data = time.thread_time(), file.read_bytes()
        try:
            modality = sniff(data, file.name)
            outcomes[file.name] = f"{len(decode(data, modality, specs[modality], Limits()))} segments"
        except ItemFault as refused:
            outcomes[file.name] = str(refused.reason)
        seconds[file.name] = time.thread_time() - begun

    for file in sorted(Path(folder).iterdir()):
        decoded(file)
    print(json.dumps({"outcomes": outcomes, "seconds": seconds, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(sys.argv[1])
