"""Damaged files of every kind: each ends embedded or in quarantine, and none of them ends anything else.

Case N is the same damage on every run: `case(N)` has it. Plain numpy makes it: what finds most here is many files in
many decoders at once, and equal runs, where hypothesis would go through them one by one and keep a database, and
atheris needs codecs that were built for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_seeds import media
from mutations import mutated

from batchproj.decode import process
from batchproj.decode.extensions import hint
from batchproj.decode.item import PieceSize
from batchproj.decode.limits import Limits
from batchproj.decoding import Decoding, Fetched
from batchproj.media import AudioSpec, ImageSpec, Segment, Spec, TextSpec, VideoSpec
from batchproj.schema import Modality, Reason
from batchproj.segments import VideoSegments

IMAGE = ImageSpec(32, 24, 36)
FRAMES = 3
SPECS: dict[Modality, Spec] = {
    Modality.IMAGE: IMAGE,
    Modality.AUDIO: AudioSpec(16_000, 0.25, 0.05, skip_silence=True),
    Modality.TEXT: TextSpec(lambda text: [(0, len(text))], lambda text: [len(text)]),
    Modality.VIDEO: VideoSpec(IMAGE, VideoSegments(seconds=0.5, frames=FRAMES, at="scene", min_seconds=0.1)),
}
LIMITS = Limits(
    image_pixels=4_000_000, jpeg_pixels=8_000_000, video_pixels=4_000_000, audio_s=600, video_s=600, decode_s=5,
    decode_bytes=256 << 20,
)  # fmt: skip


def case(number: int) -> tuple[str, bytes]:
    """A file name and what is under it."""
    rng = np.random.default_rng([6, number])
    names = list(media())
    name, other = names[number % len(names)], names[rng.integers(len(names))]
    return name, mutated(media()[name], media()[other], rng)


@dataclass
class Outcome:
    """What came of an item: what it turned out to be, its segments' digest, or why there are none."""

    modality: Modality | None = None
    segments: int = 0
    digest: str = ""
    fault: tuple[Reason, str] | None = None


class Decoders:
    """Decoding of all modalities: an item goes first to those of what its name promises, as in a run."""

    def __init__(self) -> None:
        everything = frozenset(Modality)
        piece = PieceSize(segments=16)
        self._of = {each: Decoding(each, SPECS[each], everything, LIMITS, 2, piece) for each in Modality}

    def outcomes(self, files: dict[str, tuple[str, bytes]]) -> dict[str, Outcome]:
        """By the items' ids; every item gets exactly one."""
        found: dict[str, Outcome] = {}
        waiting = {item: hint(name) or Modality.TEXT for item, (name, _) in files.items()}
        for _ in range(2):
            for modality in Modality:
                items = [item for item, wanted in waiting.items() if wanted is modality]
                fetched = [Fetched(item, item, None, "v", files[item][1], item, files[item][0]) for item in items]
                outcomes = dict(_outcomes(self._of[modality], fetched))
                assert list(outcomes) == items
                for item, outcome in outcomes.items():
                    del waiting[item]
                    if outcome.fault is None and outcome.modality is not modality:
                        assert outcome.modality is not None
                        waiting[item] = outcome.modality  # the work of those of what it is
                    else:
                        found[item] = outcome
        assert not waiting
        return found


def _outcomes(decoding: Decoding, items: list[Fetched]) -> Iterator[tuple[str, Outcome]]:
    digest, count = hashlib.sha256(), 0
    for decoded in decoding.ahead(items, None):
        for segment in decoded.segments:
            check(segment, decoded.item.modality)
            digest.update(repr((segment.start, segment.end, segment.text)).encode())
            digest.update(segment.data.encode() if isinstance(segment.data, str) else segment.data.tobytes())
            count += 1
        if decoded.pieces is not None:
            continue
        fault = (decoded.fault.reason, decoded.fault.detail) if decoded.fault else None
        yield decoded.item.source.item, Outcome(decoded.item.modality, count, digest.hexdigest(), fault)
        digest, count = hashlib.sha256(), 0


def check(segment: Segment, modality: Modality | None) -> None:
    """A segment is as an encoder expects it."""
    data = segment.data
    if modality is Modality.TEXT:
        assert isinstance(data, str)
        assert data.strip() == data != ""
        return
    assert isinstance(data, np.ndarray)
    if modality is Modality.AUDIO:
        assert data.dtype == np.float32
        assert data.ndim == 1
        assert 0 < len(data) <= 4_000
        assert np.abs(data).max() <= 1  # which is not so of NaN
    else:
        assert data.dtype == np.uint8
        assert data.shape == ((32, 24, 3) if modality is Modality.IMAGE else (FRAMES, 32, 24, 3))
    if modality is not Modality.IMAGE:
        assert segment.start is not None
        assert segment.end is not None
        assert 0 <= segment.start <= segment.end < 700


_OURS = re.compile(r"\w+ in \w+\.py, line|its decoder ended with exit code")
"""How the detail of a `decoder_crashed` begins that is a mistake in the package, not in a codec."""
_DEADLY = re.compile(r"its decoder died of|more processor time than|longer than .* s$|more memory than")
_BATCH = 1_000


def defect(outcome: Outcome) -> str | None:
    """What is wrong with what came of an item, None if it is as it should be."""
    if outcome.fault is None:
        return None if outcome.segments else "embedded without a segment"
    reason, detail = outcome.fault
    if reason not in set(Reason):
        return "a reason that is not in the list"
    if not (detail.isprintable() and 0 < len(detail) <= 200):
        return "a detail that is no line of at most 200 characters"
    if re.search(r" at 0x[0-9a-f]{6}", detail):
        return "an address in the detail"
    return "a mistake of ours" if reason is Reason.DECODER_CRASHED and _OURS.match(detail) else None


def check_media(numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file twice, in another order the second time, so that it has other neighbours."""
    started: list[int] = []
    start = process._start

    def start_and_note(*told: Any) -> Any:
        started.append(1)
        return start(*told)

    monkeypatch.setattr(process, "_start", start_and_note)
    decoders = Decoders()
    deadly = 0
    for first in range(numbers.start, numbers.stop, _BATCH):
        files = {str(number): case(number) for number in range(first, min(first + _BATCH, numbers.stop))}
        found = decoders.outcomes(files)
        again = decoders.outcomes(dict(reversed(files.items())))
        assert found.keys() == files.keys()
        wrong = {n: (files[n][0], defect(each), each) for n, each in found.items() if defect(each)}
        assert not wrong, wrong
        differing = {n: (files[n][0], found[n], again[n]) for n in files if found[n] != again[n]}
        assert not differing, differing
        deadly += sum(bool(each.fault and _DEADLY.search(each.fault[1])) for each in found.values())
    assert deadly <= 1 + len(numbers) / 500
    assert len(started) <= 2 * len(Modality) + 2 * 2 * deadly  # each item kills two, and was tried twice
    assert len(started) >= 2 * 3  # nothing of it was decoded here


def check_sources(numbers: range) -> None:
    """In two processes of their own, each with half of them."""
    middle = (numbers.start + numbers.stop) // 2
    with ThreadPoolExecutor(2) as pool:
        halves = [range(numbers.start, middle), range(middle, numbers.stop)]
        for done in pool.map(_driven, halves):
            assert not done


def _driven(numbers: range) -> list[str]:
    """What is wrong with the cases of these numbers."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "fuzz_driver.py"), str(numbers.start), str(numbers.stop)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), *filter(None, sys.path)])}
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    if ended.returncode:
        return [f"case {lines[-1:]} ended the driver: status {ended.returncode}, {ended.stderr[-1_000:]}"]
    assert [number for number, said in lines[:-1] if said] == list(numbers)
    assert int(lines[-1][1]) < 1 << 30
    return [f"case {number}: {said}" for number, said in lines[:-1] if said and said.startswith("!")]


def test_damaged_media_end_embedded_or_in_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    check_media(range(700), monkeypatch)


def test_damaged_tables_and_documents_end_listed_or_refused() -> None:
    check_sources(range(1, 301))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_damaged_media(monkeypatch: pytest.MonkeyPatch) -> None:
    check_media(range(1_000, 11_000), monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_damaged_tables_and_documents() -> None:
    check_sources(range(1_000, 4_000))


def test_most_kinds_survive_some_damage_and_none_survives_all() -> None:
    """Else the damage would be too small or too great to find anything."""
    decoders = Decoders()
    names = list(media())
    files = {str(number): case(number) for number in range(6 * len(names))}
    embedded = {files[item][0] for item, each in decoders.outcomes(files).items() if each.fault is None}
    untouched = decoders.outcomes({name: (name, data) for name, data in media().items()})
    assert len(embedded) > len(names) / 2
    assert {name for name, each in untouched.items() if each.fault} == {"page.jpg", "drawing.svg", "only_sound.mp4"}
