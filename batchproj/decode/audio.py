"""Bytes to mono sound at the encoder's rate, cut into windows.

N samples, C channels. libsndfile decodes what it knows (WAV, FLAC, OGG, MP3, AIFF ...), PyAV the
rest (AAC, M4A, WebM, WMA ...). Everything streams in blocks through one resampler, so that neither
the blocks nor the windows leave a seam, and memory is that of a block however long the sound.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from batchproj.decode.audio_windows import Samples, windows
from batchproj.decode.complete import shortfall, wav_data
from batchproj.decode.container import demuxer, moving_pictures, open_container
from batchproj.decode.content import Content, ContentFile, replaced
from batchproj.decode.faults import refusals_as_faults
from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, Segment
from batchproj.schema import Reason

_BLOCK_VALUES = 1 << 20
"""Samples times channels decoded at once: 4 MiB, whatever number of channels a header claims."""
_RATES_HZ = (1_000, 1_000_000)
_LOUDEST = np.float32(1e6)
_BY_LIBSNDFILE = frozenset({"wav", "flac", "ogg", "mp3", "aiff", "caf", "au"})
_UNKNOWN_FRAMES = 1 << 48
"""libsndfile's answer is near 2**63 where a FLAC header leaves the count open."""


def stream_audio(data: Content, spec: AudioSpec, limits: Limits) -> Iterator[Segment]:
    """Decode sound, as it is asked for, to (N,) float32 mono segments at `spec.sample_rate` of at most `window_s`.

    Mono is the mean of the channels; samples beyond [-1, 1] are clipped, after resampling.
    A window begins `window_s - overlap_s` after the one before it. A last window with less than
    0.1 s that the one before it has not would be too little to encode, so the two share the sound in
    equal parts; nothing is dropped, but with `skip_silence` the windows of which no 50 ms reach
    -50 dBFS. A short sound is one segment. `start`, `end` are seconds, of a film's sound from its first frame on.

    Raises ItemFault, where it is come upon: TRUNCATED (where the container states its length), CORRUPT, TOO_LARGE,
    NOT_FINITE, NO_SAMPLES, NO_SOUND_TRACK (a film without one), SILENT.
    """
    if missing := shortfall(data):
        raise ItemFault(Reason.TRUNCATED, missing)
    name = demuxer(data)
    file = _open_soundfile(data) if name in _BY_LIBSNDFILE else None
    if file is not None:
        with file:
            _check_duration(file.frames / max(1, file.samplerate), limits)
            blocks = _soundfile_blocks(file)
            yield from windows(_mono(blocks, file.samplerate, spec.sample_rate, limits), spec)
    elif name is not None:
        late = _behind_pictures(data, name)
        for heard in windows(_from_pyav(data, name, spec.sample_rate, limits), spec):
            yield _later(heard, late)
    else:
        raise ItemFault(Reason.CORRUPT, "not a sound format that we open")


class _Bytes(io.BytesIO):
    """Bytes for libsndfile, which on damaged headers seeks to before the start: that is the start.

    An exception there would be printed, from its callback, and not raised.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)  # to ask `getbuffer` would copy the data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = (0, self.tell(), self.size)[whence]
        return super().seek(max(0, origin + offset))


def _open_soundfile(data: Content) -> soundfile.SoundFile | None:
    """None where libsndfile does not know the codec, or refuses the file: PyAV then has the word."""
    found = wav_data(data) if data[:4] == b"RIFF" else None
    if found is not None and found.streamed:
        # libsndfile reads a size left at 0 as no sound at all, and 2**32 - 1 as "to the end".
        data = replaced(data, found.start - 4, b"\xff\xff\xff\xff")
    try:
        file = soundfile.SoundFile(_Bytes(data) if isinstance(data, bytes) else ContentFile(data))
    except soundfile.SoundFileError:
        return None
    if file.frames >= _UNKNOWN_FRAMES:
        file.close()
        return None
    return file


def _soundfile_blocks(file: soundfile.SoundFile) -> Iterator[Samples]:
    """Blocks (N, C) to the end of the file; FLAC alone states how many samples must come."""
    frames = max(1, _BLOCK_VALUES // file.channels)
    done = 0
    while done < file.frames:
        try:
            with refusals_as_faults("libsndfile"):
                block: Samples = file.read(frames, dtype="float32", always_2d=True)
        except ItemFault as fault:
            raise _cut_flac(file, done) or fault from None
        if not len(block):
            break
        done += len(block)
        yield block
    if done < file.frames and (cut := _cut_flac(file, done)):
        raise cut


def _cut_flac(file: soundfile.SoundFile, done: int) -> ItemFault | None:
    """The fault of a FLAC that ends too soon; libFLAC calls that "lost sync", as it does damage.

    Told apart by where the reader stands: at a cut it has eaten the whole file.
    """
    source: _Bytes | ContentFile = file.name
    if file.format != "FLAC" or source.tell() < source.size:
        return None
    return ItemFault(Reason.TRUNCATED, f"FLAC file of {file.frames} samples, {done} of them can be decoded")


def _later(heard: Segment, seconds: float) -> Segment:
    """The segment at other times; what was heard before the first frame begins with it."""
    if not seconds or heard.start is None or heard.end is None:
        return heard
    return replace(heard, start=max(0.0, heard.start + seconds), end=max(0.0, heard.end + seconds))


def _behind_pictures(data: Content, name: str) -> float:
    """Seconds from a film's first frame to its first sound: a sound track's times are the film's."""
    with refusals_as_faults("PyAV"), open_container(data, name) as container:
        pictures, sounds = moving_pictures(container), container.streams.audio
        if pictures is None or not sounds:
            return 0.0
        shown, heard = _begins(pictures), _begins(sounds[0])
        return 0.0 if shown is None or heard is None else float(heard - shown)


def _begins(stream: VideoStream | AudioStream) -> Fraction | None:
    """When its first packet is due, in seconds of the container; None where it does not say."""
    if stream.start_time is None or stream.time_base is None:
        return None
    return stream.start_time * stream.time_base


def _from_pyav(data: Content, name: str, rate: int, limits: Limits) -> Iterator[Samples]:
    """Samples (N,) at `rate` of the first sound stream, in pieces."""
    with refusals_as_faults("PyAV"):
        container = open_container(data, name)
    with container:
        if not container.streams.audio:
            raise ItemFault(Reason.NO_SOUND_TRACK, "the film has no sound track")
        if container.duration is not None:
            _check_duration(container.duration / av.time_base, limits)
        if container.streams.audio[0].codec_context is None:
            raise ItemFault(Reason.UNSUPPORTED_FORMAT, f"{name} file with an unknown sound codec")
        stream_rate = container.streams.audio[0].rate
        yield from _mono(_pyav_blocks(container, stream_rate), stream_rate, rate, limits)


def _pyav_blocks(container: InputContainer, rate: int) -> Iterator[Samples]:
    """Blocks (N, C), one per frame of the first sound stream."""
    to_float = av.AudioResampler(format="flt")  # not a plane a channel: PyAV reads past the eighth
    with refusals_as_faults("PyAV"):
        for frame in container.decode(audio=0):
            if frame.sample_rate != rate:
                detail = f"sample rate changes from {rate} to {frame.sample_rate} Hz on the way"
                raise ItemFault(Reason.CORRUPT, detail)
            for block in to_float.resample(frame):
                yield block.to_ndarray().astype(np.float32, copy=False).reshape(-1, block.layout.nb_channels)


def _mono(blocks: Iterable[Samples], from_rate: int, to_rate: int, limits: Limits) -> Iterator[Samples]:
    """Mean of the channels at `to_rate`: blocks (N, C) to pieces (N,) of samples in [-1, 1]."""
    if not _RATES_HZ[0] <= from_rate <= _RATES_HZ[1]:
        raise ItemFault(Reason.CORRUPT, f"sample rate of {from_rate} Hz: not of a sound")
    stream = None if from_rate == to_rate else soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
    heard = made = 0
    for block in blocks:
        heard += len(block)
        _check_duration(heard / from_rate, limits)
        mono = _mean_of_channels(block)
        piece = mono if stream is None else stream.resample_chunk(mono)
        made += len(piece)
        yield np.clip(piece, -1.0, 1.0)
    if stream is not None:
        last = stream.resample_chunk(np.empty(0, np.float32), last=True)
        made += len(last)
        yield np.clip(last, -1.0, 1.0)
    if not made:
        raise ItemFault(Reason.NO_SAMPLES, f"{heard} samples at {from_rate} Hz: no sound in it")


def _mean_of_channels(block: Samples) -> Samples:
    """(N, C) -> (N,); raises NOT_FINITE."""
    channels = block.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        total = block[:, 0].copy()
        for channel in range(1, channels):  # 20 times faster than a mean over the short axis
            total += block[:, channel]
        total /= np.float32(channels)
    if not np.isfinite(total).all():
        raise ItemFault(Reason.NOT_FINITE, "NaN or infinity among the samples")
    # Far beyond full scale the resampler's sums could overflow.
    return np.clip(total, -_LOUDEST, _LOUDEST, out=total)


def _check_duration(seconds: float, limits: Limits) -> None:
    if seconds > limits.audio_s:
        detail = f"{seconds:.0f} s of sound, the limit is {limits.audio_s:.0f} s"
        raise ItemFault(Reason.TOO_LARGE, detail)
