"""Sound: formats, resampling without seams, windows, and what is refused."""

from __future__ import annotations

import io
import itertools
import struct
import tracemalloc
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from batchproj.decode import audio
from batchproj.decode.audio import stream_audio
from batchproj.decode.audio_windows import windows
from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, Segment
from batchproj.schema import Reason

Samples = npt.NDArray[np.float32]
HEARD = AudioSpec(sample_rate=16_000, window_s=30.0)
RATE = 22_050


def tone(seconds: float = 1.5, rate: int = RATE, hertz: float = 440.0) -> Samples:
    at = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def written(samples: Samples, format: str, rate: int = RATE, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def muxed(samples: Samples, format: str, codec: str, rate: int) -> bytes:
    """Encoded by PyAV; samples (N,) or (C, N)."""
    planes = np.atleast_2d(samples)
    layout = "stereo" if len(planes) == 2 else "mono"
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def heard(data: bytes, spec: AudioSpec = HEARD) -> list[tuple[Samples, Segment]]:
    found = []
    for segment in stream_audio(data, spec, Limits()):
        assert isinstance(segment.data, np.ndarray)
        assert segment.data.dtype == np.float32
        assert segment.data.ndim == 1
        found.append((segment.data, segment))
    return found


def fault(data: bytes, limits: Limits | None = None) -> ItemFault:
    with pytest.raises(ItemFault) as raised:
        list(stream_audio(data, HEARD, limits or Limits()))
    return raised.value


def loudest_hertz(samples: Samples, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples))


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("WAV", "PCM_16", RATE),
        ("WAV", "FLOAT", RATE),
        ("WAV", "MS_ADPCM", RATE),
        ("RF64", "PCM_24", RATE),
        ("FLAC", "PCM_16", 44_100),
        ("OGG", "VORBIS", RATE),
        ("OGG", "OPUS", 48_000),
        ("MP3", None, 44_100),
        ("AIFF", "PCM_16", RATE),
        ("CAF", "PCM_16", RATE),
        ("AU", "PCM_16", RATE),
    ],
)
def test_formats_of_libsndfile(format: str, subtype: str | None, rate: int):
    ((samples, segment),) = heard(written(tone(1.5, rate), format, rate, subtype))
    assert len(samples) == pytest.approx(24_000, abs=300)
    assert (segment.start, segment.end) == (0.0, len(samples) / 16_000)
    assert loudest_hertz(samples, 16_000) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [
        ("mp4", "aac", 44_100),
        ("adts", "aac", 22_050),
        ("webm", "libopus", 48_000),
        ("matroska", "pcm_f32le", RATE),
    ],
)
def test_formats_of_pyav(format: str, codec: str, rate: int):
    ((found, _),) = heard(muxed(tone(1.5, rate), format, codec, rate))
    assert len(found) == pytest.approx(24_000, abs=1_500)
    assert loudest_hertz(found, 16_000) == pytest.approx(440, abs=2)
    assert np.abs(found[4_000:20_000]).max() == pytest.approx(0.4, abs=0.05)


def test_mono_is_the_mean_of_the_channels():
    left, right = tone(hertz=300), tone(hertz=700) * 0.5
    ((samples, _),) = heard(written(np.stack([left, right], 1), "WAV", 22_050, "FLOAT"), AudioSpec(RATE, 30))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-7)


def test_channels_through_pyav_are_averaged_too():
    planes = np.stack([tone(1, 48_000), np.zeros(48_000, np.float32)])
    ((samples, _),) = heard(muxed(planes, "webm", "libopus", 48_000))
    assert np.abs(samples[4_000:12_000]).max() == pytest.approx(0.2, abs=0.03)


def test_same_rate_is_not_resampled():
    noise = np.random.default_rng(3).uniform(-1, 1, 4_000).astype(np.float32)
    ((samples, _),) = heard(written(noise, "WAV", 16_000, "FLOAT"))
    np.testing.assert_array_equal(samples, noise)


def test_blocks_and_windows_leave_no_seam(monkeypatch: pytest.MonkeyPatch):
    noise = np.random.default_rng(3).uniform(-0.5, 0.5, RATE * 3).astype(np.float32)
    data = written(noise, "FLAC", RATE, "PCM_24")
    whole = soxr.resample(soundfile.read(io.BytesIO(data), dtype="float32")[0], RATE, 16_000)
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1_000)
    pieces = [samples for samples, _ in heard(data, AudioSpec(16_000, 0.7))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize(
    ("seconds", "edges"),
    [
        (0.05, [0, 0.05]),
        (2.0, [0, 2.0]),
        (2.5, [0, 2.0, 2.5]),
        (4.0, [0, 2.0, 4.0]),
        (4.05, [0, 2.0, 3.025, 4.05]),  # a tail of 0.05 s shares with the window before it
        (2.05, [0, 1.025, 2.05]),
        (4.1, [0, 2.0, 4.0, 4.1]),
    ],
)
def test_windows(seconds: float, edges: list[float]):
    sound = written(tone(seconds, 16_000), "WAV", 16_000)
    segments = [segment for _, segment in heard(sound, AudioSpec(16_000, 2.0))]
    assert [segment.start for segment in segments] == pytest.approx(edges[:-1])
    assert [segment.end for segment in segments] == pytest.approx(edges[1:])
    assert [segment.nbytes for segment in segments] == [
        round((end - begin) * 16_000) * 4 for begin, end in itertools.pairwise(edges)
    ]


def test_samples_beyond_full_scale_are_clipped():
    ((samples, _),) = heard(written(tone() * 4, "WAV", RATE, "FLOAT"))
    assert (samples.max(), samples.min()) == (1.0, -1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float):
    samples = tone()
    samples[1_000] = bad
    assert fault(written(samples, "WAV", RATE, "FLOAT")).reason is Reason.NOT_FINITE


def test_huge_samples_stay_finite():
    data = written(tone() * np.float32(1e38), "WAV", RATE, "FLOAT")
    ((samples, _),) = heard(data)
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU"])
def test_no_samples(format: str):
    assert fault(written(np.empty(0, np.float32), format)).reason is Reason.NO_SAMPLES


@pytest.mark.parametrize("format", ["WAV", "RF64", "FLAC", "AIFF", "AU", "OGG", "MP3"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_sound_is_truncated(format: str, part: float):
    noise = np.random.default_rng(3).uniform(-0.5, 0.5, RATE * 4).astype(np.float32)
    data = written(noise, format)
    heard(data)
    assert fault(data[: int(len(data) * part)]).reason is Reason.TRUNCATED


def test_cut_m4a_is_truncated_even_where_its_index_comes_first():
    data = muxed(tone(1.5, 44_100), "mp4", "aac", 44_100)
    assert fault(data[: len(data) // 2]).reason is Reason.TRUNCATED
    index = data.find(b"moov") - 4
    first = data[:28] + data[index:] + data[28:index]
    assert fault(first[:-3_000]).reason is Reason.TRUNCATED


def test_ogg_without_an_end_of_stream_page_is_truncated():
    data = written(np.random.default_rng(3).uniform(-0.5, 0.5, RATE * 4).astype(np.float32), "OGG")
    last_page = data.rfind(b"OggS")
    assert "stream ends" in fault(data[:last_page]).detail


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000])
def test_wav_written_to_a_pipe_has_no_size_and_is_whole(size: int):
    data = bytearray(written(tone(), "WAV"))
    data[4:8] = struct.pack("<I", min(size + 36, 0xFFFF_FFFF))
    chunk = data.find(b"data")
    data[chunk + 4 : chunk + 8] = struct.pack("<I", size)
    ((samples, _),) = heard(bytes(data))
    assert len(samples) == 24_000


def test_chunks_after_the_samples_are_not_heard():
    data = bytearray(written(np.empty(0, np.float32), "WAV"))
    data += b"LIST" + struct.pack("<I", 400) + bytes(400)
    data[4:8] = struct.pack("<I", len(data) - 8)
    assert fault(bytes(data)).reason is Reason.NO_SAMPLES


def test_flac_that_does_not_state_its_length():
    data = bytearray(written(tone(), "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    ((samples, _),) = heard(bytes(data))
    assert len(samples) == pytest.approx(24_000, abs=2)


def test_length_limit_by_header_and_while_decoding():
    limits = Limits(audio_s=1.0)
    refused = fault(written(tone(2.5), "FLAC"), limits)
    assert (refused.reason, "limit is 1 s" in refused.detail) == (Reason.TOO_LARGE, True)
    data = bytearray(written(tone(2.5), "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # the header no longer tells
    assert fault(bytes(data), limits).reason is Reason.TOO_LARGE
    assert fault(muxed(tone(2.5, 48_000), "webm", "libopus", 48_000), limits).reason is Reason.TOO_LARGE


def test_flac_that_claims_years_is_refused_by_its_header():
    data = bytearray(written(tone(), "FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    assert fault(bytes(data)).reason is Reason.TOO_LARGE


@pytest.mark.parametrize("data", [b"RIFF\x10\0\0\0WAVEjunk", b"OggS", b"not a sound", b"ID3\x04\0\0\0\0\0\0"])
def test_what_is_no_sound_is_refused(data: bytes):
    refused = fault(data)
    assert refused.reason in (Reason.CORRUPT, Reason.TRUNCATED)
    assert refused.detail.isprintable()


def test_film_without_sound_has_no_sound_track():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert fault(file.getvalue()).reason is Reason.NO_SOUND_TRACK


@pytest.mark.parametrize(
    ("seconds", "overlap", "spans"),
    [
        (1.5, 0.5, [(0, 1.5)]),
        (2.05, 0.5, [(0, 1.275), (0.775, 2.05)]),  # less than 0.1 s would be new: two equal parts
        (3.5, 0.5, [(0, 2), (1.5, 3.5)]),
        (4.0, 0.5, [(0, 2), (1.5, 3.5), (3.0, 4.0)]),
        (4.0, 1.9, [(round(begin * 0.1, 1), round(2 + begin * 0.1, 1)) for begin in range(21)]),
    ],
)
def test_overlapping_windows(seconds: float, overlap: float, spans: list[tuple[float, float]]):
    sound = tone(seconds, 16_000)
    found = heard(written(sound, "WAV", 16_000, "FLOAT"), AudioSpec(16_000, 2.0, overlap))
    np.testing.assert_allclose([(segment.start, segment.end) for _, segment in found], spans, atol=1e-9)
    for samples, segment in found:
        assert segment.start is not None
        begin = round(segment.start * 16_000)
        np.testing.assert_array_equal(samples, sound[begin : begin + len(samples)])


@pytest.mark.parametrize("pieces", [1, 7, 1_600, 50_000])
def test_windows_do_not_depend_on_the_pieces_they_come_in(pieces: int):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 50_001).astype(np.float32)
    spec = AudioSpec(16_000, 0.5, 0.2)
    whole = list(windows([sound], spec))
    found = list(windows((sound[at : at + pieces] for at in range(0, len(sound), pieces)), spec))
    assert [(s.start, s.end) for s in found] == [(s.start, s.end) for s in whole]
    assert [s.data.tobytes() for s in found] == [s.data.tobytes() for s in whole]  # type: ignore[union-attr]


def test_silent_windows_are_left_out_and_quiet_ones_are_not():
    sound = np.random.default_rng(0).normal(0, 0.001, 12 * 16_000).astype(np.float32)  # -60 dBFS
    sound[3 * 16_000 : 4 * 16_000] = tone(1, 16_000)
    sound[8 * 16_000 : 8 * 16_000 + 800] = 0.004  # 50 ms at -48 dBFS
    spec = AudioSpec(16_000, 2.0, 0.5, skip_silence=True)
    found = heard(written(sound, "WAV", 16_000, "FLOAT"), spec)
    assert [(segment.start, segment.end) for _, segment in found] == [(1.5, 3.5), (3.0, 5.0), (7.5, 9.5)]
    assert len(heard(written(sound, "WAV", 16_000, "FLOAT"), AudioSpec(16_000, 2.0, 0.5))) == 8


def test_a_sound_of_silence_alone_is_refused_only_where_silence_is_left_out():
    data = written(np.zeros(80_000, np.float32), "WAV", 16_000)
    with pytest.raises(ItemFault) as raised:
        list(stream_audio(data, AudioSpec(16_000, 2.0, 0.5, skip_silence=True), Limits()))
    assert raised.value.reason is Reason.SILENT
    assert raised.value.detail == "5.0 s of sound, all of it below -50 dBFS"
    assert len(heard(data)) == 1


def test_a_long_sound_is_decoded_as_it_is_asked_for():
    """Half an hour, 115 MB of samples; what is held is a block and a window."""
    data = written(np.tile(tone(60, 16_000), 30), "FLAC", 16_000)
    tracemalloc.start()
    segments = stream_audio(data, AudioSpec(16_000, 10.0, 2.0), Limits())
    ends = [segment.end for segment in segments]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(ends), ends[-1]) == (225, 1_800.0)
    assert peak < 24 * 2**20


def test_a_cut_long_sound_gives_its_first_windows_before_the_fault():
    data = written(np.random.default_rng(3).uniform(-0.5, 0.5, 16_000 * 240).astype(np.float32), "FLAC", 16_000)
    segments = stream_audio(data[: len(data) * 3 // 4], AudioSpec(16_000, 10.0), Limits())
    assert next(segments).end == 10.0
    with pytest.raises(ItemFault) as raised:
        list(segments)
    assert raised.value.reason is Reason.TRUNCATED


def test_a_title_that_is_not_utf8_is_no_fault_of_the_sound():
    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as container:
        container.metadata["title"] = "Frosch und Krote"
        stream: Any = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0, 48_000)[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert heard(file.getvalue().replace(b"Krote", b"Kr\xf6te"))
