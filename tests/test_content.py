"""Bytes that are read range by range: the decoders find in them what they find in the bytes themselves."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from fuzz_seeds import media
from mutations import mutated
from test_decode_process import outcome
from waves import sound
from whole_item import sniff

from batchproj.decode import content
from batchproj.decode.audio import stream_audio
from batchproj.decode.content import Content, ContentFile, Ranges, replaced
from batchproj.decode.item import decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decode.sniff import look_inside
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec, Spec, VideoSpec
from batchproj.schema import Modality
from batchproj.segments import VideoSegments

SPECS: dict[Modality, Spec] = {
    Modality.AUDIO: AudioSpec(16_000, 1.0),
    Modality.VIDEO: VideoSpec(ImageSpec(32, 32, 36), VideoSegments(seconds=1.0)),
}


class Read:
    """Bytes that are asked for in ranges, and what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, list[tuple[int, int]]()

    def __call__(self, begin: int, end: int) -> bytes:
        self.asked.append((begin, end))
        return self.data[begin:end]

    def ranges(self) -> Ranges:
        return Ranges(len(self.data), self)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(content, "_BLOCKS_KEPT", 3)


@pytest.mark.parametrize("size", [0, 1, 999, 1_000, 1_001, 12_345])
def test_ranges_are_the_bytes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    ranges = Read(data).ranges()
    places = [0, 1, size // 2, 998, 1_000, 1_003, size - 1, size, size + 5, -1, -7]
    assert len(ranges) == size
    assert [ranges[begin:end] for begin in places for end in places] == [
        data[begin:end] for begin in places for end in places
    ]
    assert ranges[:] == data
    assert [ranges[at] for at in places if -size <= at < size] == [data[at] for at in places if -size <= at < size]
    with pytest.raises(IndexError):
        ranges[size]
    sought = [data[at : at + length] for at in range(0, size, 97) for length in (1, 4, 1_200)]
    assert [ranges.rfind(each) for each in sought] == [data.rfind(each) for each in sought]
    assert ranges.rfind(b"not in it") == -1
    assert [ranges.startswith(each) for each in (data[:3], b"\0none")] == [True, False]


def test_few_blocks_are_kept_and_only_what_is_wanted_is_read() -> None:
    read = Read(bytes(100_000))
    ranges = read.ranges()
    for at in (5, 90_005, 50_005, 7, 90_007, 50_007):  # as sound and pictures that lie far apart
        assert ranges[at : at + 10] == bytes(10)
    assert read.asked == [(0, 1_000), (90_000, 91_000), (50_000, 51_000)]
    assert ranges[:] == read.data
    assert len(ranges._kept) == 3


def test_a_file_of_ranges_is_read_as_one_of_bytes() -> None:
    data = np.random.default_rng(0).bytes(5_500)
    ours, theirs = ContentFile(Read(data).ranges()), io.BytesIO(data)
    for offset, whence in ((0, 0), (990, 0), (100, 1), (-700, 2), (0, 2), (9, 2), (-4_000, 1)):
        assert ours.seek(offset, whence) == theirs.seek(offset, whence)
        assert ours.read(1_500) == theirs.read(1_500)
        assert ours.tell() == theirs.tell()
    assert ours.seek(-9_999, io.SEEK_CUR) == 0  # for libsndfile; bytes say that it is no place


def test_replaced_bytes() -> None:
    data = bytes(3_000)
    for at in (0, 998, 1_500, 2_996):
        wanted = replaced(data, at, b"four")
        found = replaced(Read(data).ranges(), at, b"four")
        assert found[:] == wanted[:] == data[:at] + b"four" + data[at + 4 :]


def cases() -> Iterator[tuple[str, Modality, bytes]]:
    """Sounds and films of many formats: whole, cut, and damaged by seed."""
    rng = np.random.default_rng(0)
    for name, data in media().items():
        try:
            modality = sniff(data, name)
        except ItemFault:
            continue
        if modality in SPECS:
            yield name, modality, data
            yield f"cut {name}", modality, data[: len(data) * 3 // 4]
            for number in range(4):
                yield f"{name}, damage {number}", modality, mutated(data, data, rng)


def looked(data: Content) -> object:
    try:
        return look_inside(data)
    except (ItemFault, AssertionError) as fault:
        return repr(fault)


def test_decoders_find_in_ranges_what_they_find_in_bytes() -> None:
    faults = 0
    for name, modality, data in cases():
        wanted = outcome(decode_pieces(data, modality, SPECS[modality], Limits()))
        ranges = Read(data).ranges()
        assert outcome(decode_pieces(ranges, modality, SPECS[modality], Limits())) == wanted, name
        assert looked(ranges) == looked(data), name
        faults += wanted[1] is not None
    assert faults > 20


def test_a_wav_whose_size_was_never_filled_in() -> None:
    body = (sound(2) * 32_767).astype("<i2").tobytes()
    sizes = [len(each).to_bytes(4, "little") for each in (b"", body)]
    header = b"RIFF" + sizes[0] + b"WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data" + sizes[0]
    spec = AudioSpec(16_000, 1.0)
    whole, ranged = (list(stream_audio(each, spec, Limits())) for each in (header + body, Read(header + body).ranges()))
    assert len(whole) == 2
    assert [each.data.tobytes() for each in ranged] == [each.data.tobytes() for each in whole]


def test_a_look_reads_little_of_a_large_film() -> None:
    film = media()["h264.mp4"]
    read = Read(film + (1_000_000).to_bytes(4, "big") + b"free" + bytes(999_992))
    assert look_inside(read.ranges()) is Modality.VIDEO
    assert sum(end - begin for begin, end in read.asked) < 100_000
