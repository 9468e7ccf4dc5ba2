"""Decoders in processes of their own: the same pixels and samples, and what ends a process ends nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from films import film, only_sound, seconds_of
from PIL import Image
from waves import picture, sound

from batchproj.collection.unit import Unit
from batchproj.decode import process
from batchproj.decode.child import DECODE, LOOK, Work
from batchproj.decode.item import PIECE, PieceSize, decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decode.process import DecoderProcess
from batchproj.decoding import Decoding, Fetched
from batchproj.embedding import UnitWorker
from batchproj.errors import BatchprojError, ItemFault
from batchproj.media import AudioSpec, ImageSpec, Spec, VideoSpec
from batchproj.schema import Modality, Reason
from batchproj.segments import VideoSegments
from batchproj.space import open_space, resolve

IMAGE = ImageSpec(32, 32, 36)
AUDIO = AudioSpec(16_000, 1.0)
VIDEO = VideoSpec(IMAGE, VideoSegments(seconds=1.0))
SPECS: dict[Modality, Spec] = {Modality.IMAGE: IMAGE, Modality.AUDIO: AUDIO, Modality.VIDEO: VIDEO}


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def wave(seconds: float, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds), 16_000, format=kind)
    return file.getvalue()


def work(modality: Modality, limits: Limits = Limits(), piece: PieceSize = PIECE) -> Work:
    return Work(modality, SPECS[modality], limits, piece)  # type: ignore[arg-type]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Decoders that `poisoned_child` makes holes in; the pids of those that were started."""
    started: list[int] = []
    start = process._start

    def start_and_note(*told: Any) -> Any:
        child = start(*told)
        started.append(child.process.pid)
        return child

    monkeypatch.setattr(process, "PROGRAM", "poisoned_child")
    monkeypatch.setattr(process, "_start", start_and_note)
    return started


PNG = saved(picture(70, 50), "PNG")
CONTENTS = {
    Modality.IMAGE: [
        PNG,
        saved(picture(300, 200), "JPEG"),
        saved(picture(70, 50).quantize(16), "GIF"),
        saved(picture(70, 50), "WEBP"),
        saved(picture(70, 50).convert("LAB"), "TIFF", compression="tiff_lzw"),
        saved(picture(70, 50).convert("RGBA"), "PNG"),
        saved(picture(70, 50).convert("L"), "BMP"),
        PNG[: len(PNG) // 2],
    ],
    Modality.AUDIO: [wave(2.5), wave(0.3, "FLAC"), wave(1, "OGG"), wave(1, "MP3"), only_sound(), wave(2)[:5_000]],
    Modality.VIDEO: [film(seconds_of(3, 10)), film(seconds_of(1, 10), format="webm", codec="libvpx-vp9"), b"\0" * 999],
}


def outcome(pieces: Iterator[Any]) -> tuple[list[Any], tuple[str, str] | None]:
    segments = []
    try:
        for piece in pieces:
            segments += [(each.data.tobytes(), each.data.shape, each.start, each.end) for each in piece.segments]
    except ItemFault as fault:
        return segments, (fault.reason, fault.detail)
    return segments, None


@pytest.mark.parametrize("modality", list(CONTENTS))
def test_the_process_gives_what_the_decoder_gives(modality: Modality) -> None:
    decoder = DecoderProcess(work(modality, piece=PieceSize(segments=2)))
    for data in CONTENTS[modality]:
        wanted = outcome(decode_pieces(data, modality, SPECS[modality], Limits()))
        assert outcome(decoder.pieces(data)) == wanted
        assert (wanted[1] is None) == bool(wanted[0])
    assert any(outcome(decoder.pieces(data))[1] for data in CONTENTS[modality])


@pytest.fixture
def in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item but pictures is read as a large one is."""
    monkeypatch.setattr(process, "KEPT_BYTES", 0)


@pytest.mark.usefixtures("in_ranges")
@pytest.mark.parametrize("modality", [Modality.AUDIO, Modality.VIDEO])
def test_the_process_reads_a_large_item_from_the_worker(modality: Modality) -> None:
    decoder = DecoderProcess(work(modality, piece=PieceSize(segments=2)))
    assert all(decoder._in_ranges(job, bytes(1)) for job in (LOOK, DECODE))
    for data in CONTENTS[modality]:
        assert outcome(decoder.pieces(data)) == outcome(decode_pieces(data, modality, SPECS[modality], Limits()))
    assert decoder.look(film(seconds_of(1, 10))) is Modality.VIDEO


def test_a_picture_is_sent_whole_however_large() -> None:
    decoder = DecoderProcess(work(Modality.IMAGE))
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1_700, 1_700, 3), np.uint8)), "BMP")
    assert not decoder._in_ranges(DECODE, data)
    assert decoder._in_ranges(LOOK, data)
    assert outcome(decoder.pieces(data)) == outcome(decode_pieces(data, Modality.IMAGE, IMAGE, Limits()))


@pytest.mark.usefixtures("in_ranges")
def test_to_wait_for_a_worker_that_has_other_work_takes_none_of_the_item_s_time(poisoned: list[int]) -> None:
    """The first piece is of the first 65 s, which are decoded at once; for the next one more bytes are wanted."""
    limits = Limits(decode_s=0.05)
    data = wave(150)
    pieces = DecoderProcess(work(Modality.AUDIO, limits, PieceSize(segments=64))).pieces(data)
    found = [next(pieces)]
    time.sleep(limits.wall_seconds(len(data)) + 1)
    found += pieces
    assert [len(piece.segments) for piece in found] == [64, 64, 22]
    assert len(poisoned) == 1


def test_what_comes_back_may_be_written_to() -> None:
    """As what a decoder gives may: an encoder need not copy it."""
    (piece,) = DecoderProcess(work(Modality.IMAGE)).pieces(PNG)
    piece.segments[0].data[:] = 0


def test_a_container_is_looked_into_there() -> None:
    decoder = DecoderProcess(Work(None, None, Limits(), PIECE))
    assert decoder.look(film(seconds_of(1, 10))) is Modality.VIDEO
    assert decoder.look(only_sound()) is Modality.AUDIO
    with pytest.raises(ItemFault, match="corrupt"):
        decoder.look(b"\x1a\x45\xdf\xa3" + bytes(2_000))


@pytest.mark.parametrize(("layout", "channels"), [("stereo", 2), ("7.1", 8), ("hexadecagonal", 16)])
def test_sound_of_many_channels_is_the_mean_of_them(layout: str, channels: int) -> None:
    """In Matroska, which libsndfile does not open; PyAV reads past the planes of a frame of eight or more."""
    levels = np.linspace(-0.5, 0.7, channels, dtype=np.float32)
    samples = np.tile(levels, 4_000)[None]
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("pcm_f32le", rate=16_000, layout=layout)
        frame: Any = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (piece,) = DecoderProcess(work(Modality.AUDIO)).pieces(file.getvalue())
    (segment,) = piece.segments
    np.testing.assert_allclose(segment.data, np.full(4_000, levels.mean()), atol=1e-6)


def test_one_process_for_many_items() -> None:
    decoder = DecoderProcess(work(Modality.IMAGE))
    assert decoder._child is None
    pids = {pid_of(decoder) for _ in range(3) for _ in decoder.pieces(PNG)}
    assert len(pids) == 1
    assert pids != {os.getpid()}


def pid_of(decoder: DecoderProcess) -> int:
    assert decoder._child is not None
    return decoder._child.process.pid


def test_the_rest_of_an_answer_that_somebody_keeps_is_given_to_nobody_else() -> None:
    """As the traceback of an interrupted query keeps it."""
    decoder = DecoderProcess(work(Modality.AUDIO, piece=PieceSize(segments=1)))
    kept = decoder.pieces(wave(30))
    next(kept)
    assert outcome(decoder.pieces(wave(2))) == outcome(decode_pieces(wave(2), Modality.AUDIO, AUDIO, Limits()))
    kept.close()
    assert outcome(decoder.pieces(wave(1))) == outcome(decode_pieces(wave(1), Modality.AUDIO, AUDIO, Limits()))


def test_nothing_is_left_of_items_that_nobody_wants_the_rest_of() -> None:
    decoder = DecoderProcess(work(Modality.AUDIO, piece=PieceSize(segments=1)))
    pieces = decoder.pieces(wave(9))
    next(pieces)
    pieces.close()
    assert outcome(decoder.pieces(wave(2))) == outcome(decode_pieces(wave(2), Modality.AUDIO, AUDIO, Limits()))


@pytest.mark.parametrize(
    ("poison", "reason", "said"),
    [
        ("crash", Reason.DECODER_CRASHED, "its decoder died of SIGSEGV"),
        ("leave", Reason.DECODER_CRASHED, "its decoder ended with exit code 3"),
        ("be_killed", Reason.DECODER_CRASHED, "its decoder died of SIGKILL, perhaps for want of memory"),
        ("spin", Reason.DECODER_CRASHED, "decoding it takes more processor time than 1 s"),  # of up to 9 s
        ("hang", Reason.DECODER_CRASHED, "decoding it takes longer than 1 s"),
        ("eat", Reason.TOO_LARGE, "decoding it takes more memory than 1,073,741,824 bytes"),
    ],
)
def test_what_ends_its_decoder_twice_is_at_fault(poison: str, reason: Reason, said: str, poisoned: list[int]) -> None:
    decoder = DecoderProcess(work(Modality.IMAGE, Limits(decode_s=0.9 if poison == "spin" else 0.05)))
    with pytest.raises(ItemFault) as fault:
        list(decoder.pieces(PNG + b"!" + poison.encode()))
    assert (fault.value.reason, fault.value.detail) == (reason, said)
    assert len(poisoned) == 2
    assert outcome(decoder.pieces(PNG))[1] is None
    assert len(poisoned) == 3


@pytest.mark.usefixtures("in_ranges")
@pytest.mark.parametrize("poison", ["crash", "eat"])
def test_what_ends_its_decoder_twice_is_at_fault_when_it_is_large(poison: str, poisoned: list[int]) -> None:
    reason = {"crash": Reason.DECODER_CRASHED, "eat": Reason.TOO_LARGE}[poison]
    decoder = DecoderProcess(work(Modality.AUDIO))
    with pytest.raises(ItemFault) as fault:
        list(decoder.pieces(wave(1) + b"!" + poison.encode()))
    assert fault.value.reason == reason
    assert len(poisoned) == 2
    assert outcome(decoder.pieces(wave(1)))[1] is None


@pytest.mark.parametrize("kept", [0, 8 << 20])
def test_a_process_killed_once_costs_no_item(kept: int, poisoned: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has still to say is more than a socket holds, so that its death is always in the middle of it."""
    monkeypatch.setattr(process, "KEPT_BYTES", kept)
    data = wave(60)
    decoder = DecoderProcess(work(Modality.AUDIO, piece=PieceSize(segments=1)))
    pieces = decoder.pieces(data)
    found = [next(pieces), next(pieces)]
    os.kill(poisoned[0], signal.SIGKILL)
    found += pieces
    wanted = [each for piece in decode_pieces(data, Modality.AUDIO, AUDIO, Limits()) for each in piece.segments]
    assert [each.data.tobytes() for piece in found for each in piece.segments] == [
        each.data.tobytes() for each in wanted
    ]
    assert len(poisoned) == 2


def test_a_mistake_of_ours_is_one_item_s_fault_and_says_where(poisoned: list[int]) -> None:
    with pytest.raises(ItemFault, match=r"decoder_crashed: KeyError in poisoned_child.py, line \d+: 'nothing'; please"):
        list(DecoderProcess(work(Modality.IMAGE)).pieces(PNG + b"!stumble"))
    assert len(poisoned) == 1


def test_a_decoder_opens_nothing_and_knows_no_secret(poisoned: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    with pytest.raises(ItemFault, match=r"open: \[\], secrets: \[\]"):
        list(DecoderProcess(work(Modality.IMAGE)).pieces(PNG + b"!break_out"))


def test_memory_is_limited_whatever_a_header_promises() -> None:
    """Sixty megapixels take 180 MB, and pass where they may."""
    large = saved(Image.new("RGB", (10_000, 6_000)), "PNG")
    with pytest.raises(ItemFault, match="too_large: decoding it takes more memory than 67,108,864 bytes"):
        list(DecoderProcess(work(Modality.IMAGE, Limits(decode_bytes=64 << 20))).pieces(large))
    assert outcome(DecoderProcess(work(Modality.IMAGE)).pieces(large))[1] is None


def test_a_decoder_that_does_not_start_is_no_item_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRAM", "batchproj.not_there")
    with pytest.raises(BatchprojError, match=r"did not start .* No module named batchproj\.not_there") as error:
        list(DecoderProcess(work(Modality.IMAGE)).pieces(PNG))
    assert not isinstance(error.value, ItemFault)


_ORPHAN = """
from batchproj.decode import process
process.PROGRAM = "poisoned_child"
from test_decode_process import *
decoder = DecoderProcess(work(Modality.IMAGE, Limits(decode_s=0.2)))
list(decoder.pieces(PNG))
print(pid_of(decoder), flush=True)
list(decoder.pieces(PNG + b"!hang"))
"""


def test_a_decoder_ends_with_its_worker_even_when_it_hangs() -> None:
    folder = Path(__file__).parent
    path = {"PYTHONPATH": f"{folder.parent}:{folder}"}
    worker = subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True, env=os.environ | path)
    assert worker.stdout is not None
    orphan = Path("/proc") / str(int(worker.stdout.readline()))
    worker.kill()
    worker.communicate()
    deadline = time.monotonic() + 60
    while orphan.exists() and "zombie" not in (orphan / "status").read_text():
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)


def fetched(contents: dict[str, bytes]) -> list[Fetched]:
    return [Fetched(name, name, None, "v", data, f"sha-{name}", name) for name, data in contents.items()]


def test_poison_costs_its_neighbours_nothing(poisoned: list[int], tiny_space: Path) -> None:
    good = {f"{n:02}.png": saved(picture(70, 50, seed=n), "PNG") for n in range(30)}
    bad = {f"{n:02}.x.png": PNG + b"!" + poison for n, poison in enumerate((b"crash", b"leave", b"eat"))}
    space = resolve(open_space(str(tiny_space)))
    worker = UnitWorker(space.members[Modality.IMAGE], space.dim, frozenset(space.members), Limits(), 2)
    worker.load()
    unit = Unit(name="u", run="1", task="embed", modality=Modality.IMAGE, items=33, bytes=0)
    alone = worker.embed(unit, fetched(good), None, lambda _: None)
    before = len(poisoned)
    together = worker.embed(unit, fetched(dict(sorted({**good, **bad}.items()))), None, lambda _: None)
    assert together.vectors.equals(alone.vectors)
    faults = {row["item"]: row["reason"] for row in together.outcome.to_pylist() if row["reason"]}
    assert faults == {"00.x.png": "decoder_crashed", "01.x.png": "decoder_crashed", "02.x.png": "too_large"}
    assert len(poisoned) - before <= 2 * len(bad)


@pytest.mark.timeout(120)
def test_many_long_items_wait_for_few_processes(poisoned: list[int]) -> None:
    """All have more to come, and the processes are two: in order nobody waits for one that never comes."""
    decoding = Decoding(Modality.AUDIO, AUDIO, frozenset(Modality), Limits(), 2, PieceSize(segments=1))
    items = fetched({f"{n:02}.wav": wave(1 + n % 3) for n in range(24)})
    ends = [decoded.item.source.item for decoded in decoding.ahead(items, None) if decoded.pieces is None]
    assert ends == [each.item for each in items]
    assert len(poisoned) == 2


@pytest.mark.timeout(120)
def test_a_unit_given_up_leaves_nothing_waiting(poisoned: list[int]) -> None:
    decoding = Decoding(Modality.AUDIO, AUDIO, frozenset(Modality), Limits(), 2, PieceSize(segments=1))
    items = fetched({f"{n:02}.wav": wave(3) for n in range(24)})
    ahead = decoding.ahead(items, None)
    next(ahead)
    ahead.close()
    ends = [decoded.item.source.item for decoded in decoding.ahead(items[:3], None) if decoded.pieces is None]
    assert ends == [each.item for each in items[:3]]


def resident_mib(decoding: Decoding) -> int:
    """Of its decoders together, as they are now."""
    total = 0
    for pid in [pid_of(decoder) for decoder in decoding._processes if decoder._child]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
            total += int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    return total // 1024


@pytest.mark.timeout(300)
def test_large_pictures_take_turns_for_their_memory_adds_up() -> None:
    """Each takes half a gigabyte for a moment, and four decoders could have one each."""
    decoding = Decoding(Modality.IMAGE, IMAGE, frozenset(Modality), Limits(), 4, PIECE)
    large = saved(Image.new("RGBA", (8_000, 8_000), (9, 90, 200, 99)), "PNG", compress_level=1)
    stop, peak = threading.Event(), [0]

    def look() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], resident_mib(decoding))

    looking = threading.Thread(target=look)
    looking.start()
    found = list(decoding.ahead(fetched({f"{n}.png": large for n in range(8)}), None))
    stop.set()
    looking.join()
    assert [len(each.segments) for each in found] == [1] * 8
    assert 400 < peak[0] < 1_500


def test_decoders_are_ready_before_the_first_unit(poisoned: list[int], tiny_space: Path) -> None:
    space = resolve(open_space(str(tiny_space)))
    members = frozenset(space.members)
    for modality, count in ((Modality.IMAGE, 2), (Modality.TEXT, 0)):
        poisoned.clear()
        UnitWorker(space.members[modality], space.dim, members, Limits(), 2).load()
        assert len(poisoned) == count
