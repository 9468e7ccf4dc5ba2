"""Dispatch, threads, and hostile bytes: everything ends in segments or in an `ItemFault`."""

from __future__ import annotations

import io
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import soundfile
from films import film, seconds_of
from PIL import Image
from whole_item import decode, sniff

from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec, Segment, Spec, TextSpec, VideoSpec
from batchproj.schema import Modality, Reason
from batchproj.segments import VideoSegments

SPECS: dict[Modality, Spec] = {
    Modality.IMAGE: ImageSpec(32, 32, 32),
    Modality.AUDIO: AudioSpec(16_000, 0.2),
    Modality.TEXT: TextSpec(lambda text: [(0, len(text))], lambda text: [len(text)]),
    Modality.VIDEO: VideoSpec(ImageSpec(32, 32, 32), VideoSegments(seconds=0.5, frames=2)),
}
MUTANTS = 60


@cache
def samples() -> dict[str, bytes]:
    """Small real files by name."""
    generator = np.random.default_rng(11)
    picture = Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    noise = generator.uniform(-0.5, 0.5, 8_000).astype(np.float32)
    files = {"x.txt": "Grüße from a frog in the pond. ".encode() * 20}
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        file = io.BytesIO()
        picture.save(file, format)
        files[f"x.{format.lower()}"] = file.getvalue()
    for format in ("WAV", "OGG", "FLAC", "MP3", "AIFF"):
        file = io.BytesIO()
        soundfile.write(file, noise, 16_000 if format != "MP3" else 22_050, format=format)
        files[f"x.{format.lower()}"] = file.getvalue()
    shown = list(seconds_of(1.2, 10))
    return files | {
        "x.mp4": film(shown, sound=True),
        "x.webm": film(shown, format="webm", codec="libvpx-vp9"),
        "x.avi": film(shown, format="avi", codec="mpeg4"),
        "x.mpg": film(shown, format="mpeg", codec="mpeg2video"),
    }


def outcome(data: bytes, name: str) -> list[Segment] | ItemFault:
    try:
        modality = sniff(data, name)
        return decode(data, modality, SPECS[modality], Limits())
    except ItemFault as fault:
        return fault


def mutant(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 2, 8])):
        at = chance.randrange(min(len(changed), chance.choice([48, 400, 1 << 30])))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randrange(1, 20)]
            case 2:
                changed[at:at] = chance.randbytes(chance.randrange(1, 20))
            case _:
                changed[at : at + 4] = chance.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
    return bytes(changed)


@pytest.mark.parametrize("name", samples())
def test_damaged_files_end_in_segments_or_a_fault(name: str):
    chance = random.Random(f"seed of {name}")
    faults = 0
    for _ in range(MUTANTS):
        result = outcome(mutant(samples()[name], chance), name)
        if isinstance(result, ItemFault):
            faults += 1
            assert result.detail.isprintable()
            assert len(result.detail) <= 200
            assert " at 0x" not in result.detail
            continue
        assert result
        for segment in result:
            check(segment)
    assert faults > 0


def check(segment: Segment) -> None:
    if isinstance(segment.data, str):
        assert segment.data.strip() == segment.data != ""
    elif segment.data.dtype == np.uint8:
        assert segment.data.shape in ((32, 32, 3), (2, 32, 32, 3))
    else:
        assert 0 < len(segment.data) <= 3_200
        assert np.isfinite(segment.data).all()
        assert np.abs(segment.data).max() <= 1


def test_threads_agree_with_one():
    names = list(samples()) * 6

    def arrays(name: str) -> list[Any]:
        result = outcome(samples()[name], name)
        assert not isinstance(result, ItemFault)
        return [segment.data for segment in result]

    alone = {name: arrays(name) for name in samples()}
    with ThreadPoolExecutor(8) as pool:
        for name, together in zip(names, pool.map(arrays, names), strict=True):
            assert len(together) == len(alone[name])
            for got, expected in zip(together, alone[name], strict=True):
                np.testing.assert_array_equal(got, expected)


def test_decode_goes_by_modality():
    for name in samples():
        modality = sniff(samples()[name], name)
        segments = decode(samples()[name], modality, SPECS[modality], Limits())
        kind = str if modality is Modality.TEXT else np.ndarray
        assert all(isinstance(segment.data, kind) for segment in segments)


def test_item_above_the_limit():
    with pytest.raises(ItemFault) as raised:
        decode(b"frog", Modality.TEXT, SPECS[Modality.TEXT], Limits(item_bytes=3))
    assert raised.value.reason is Reason.TOO_LARGE


def test_spec_of_another_modality_is_our_mistake_and_not_the_items():
    with pytest.raises(TypeError, match="text cannot be decoded for ImageSpec"):
        decode(b"frog", Modality.TEXT, ImageSpec(8, 8, 8), Limits())


def test_memory_error_is_not_taken_for_a_bad_item(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", full)
    with pytest.raises(MemoryError):
        decode(samples()["x.png"], Modality.IMAGE, SPECS[Modality.IMAGE], Limits())
