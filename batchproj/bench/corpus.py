"""Texts, pictures and sounds made from seeds: the same bytes on every machine with the same libraries.

What is in them matters to no vector here, but their sizes, their detail and their lengths are those of
real ones: a flat picture would decode in no time, and texts of one length need no padding.
"""

from __future__ import annotations

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

# Each is one token of BERT's vocabulary, so that lengths in tokens are known without a tokenizer.
_WORDS = (  # noqa: SIM905
    "the of and to in is was he for it with as his on be at by had not are but from or have an they which one you "
    "were her all she there would their we him been has when who will more no if out so said what up its about into "
    "than them can only other new some could time these two may then do first any my now such like our over man me "
    "even most made after also did many before must through back years where much your way well down should because "
    "each just those people how too little state good very make world still own see men work long get here between "
    "both life being under never day same another know while last might us great old year off come since against go "
    "came right used take three states himself few house use during without again place american around however home "
    "small found thought went say part once general high upon school every water light night river bird green"
).split()

SAMPLE_RATE = 44_100
"""Hz of the sounds: they have to be resampled for any encoder, as real ones do."""


def sentence(seed: list[int]) -> str:
    """3 to 60 words, most of them short: lengths as captions and search queries have them."""
    rng = np.random.default_rng(seed)
    return _sentences(rng, int(np.clip(rng.lognormal(2.4, 0.6), 3, 60)))


def paragraph(seed: list[int]) -> str:
    """About 240 tokens, and at most 250: one segment of an encoder that takes 256."""
    rng = np.random.default_rng(seed)
    return _sentences(rng, int(np.clip(rng.normal(220, 8), 200, 228)))


def record(seed: list[int]) -> str:
    """2,000 bytes with few tokens, so that a workload of them measures requests: a sentence and a long hex number.

    BERT takes a word of over 100 characters for one unknown token.
    """
    rng = np.random.default_rng(seed)
    words = _sentences(rng, 12)
    return f"{words}\n{rng.bytes(1_000).hex()}"[:2_000]


def _sentences(rng: np.random.Generator, words: int) -> str:
    chosen = [str(word) for word in rng.choice(_WORDS, words)]
    parts = [chosen[start : start + 13] for start in range(0, words, 13)]
    return " ".join(" ".join(part).capitalize() + "." for part in parts)


def icon(seed: list[int]) -> bytes:
    """A PNG of 96 to 300 px: shapes on a gradient, with a little grain."""
    rng = np.random.default_rng(seed)
    width, height = (int(edge) for edge in rng.integers(96, 301, 2))
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    picture = corners.resize((width, height), Image.Resampling.BILINEAR)
    _shapes(picture, rng, 6)
    grain = rng.integers(-3, 4, (height, width, 3), dtype=np.int16)
    return _encoded(np.clip(np.asarray(picture, np.int16) + grain, 0, 255).astype(np.uint8), "PNG")


def photograph(seed: list[int]) -> bytes:
    """A JPEG of 1600 to 2400 px and quality 90 with detail at every scale (1/f noise), edges, and grain."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1_600, 2_401))
    height = width * 3 // 4
    bank = _noise_bank()
    planes = []
    for _ in range(3):
        field = bank[rng.integers(len(bank))]
        top, left = rng.integers(0, len(field), 2)
        plane = np.roll(field, (int(top), int(left)), (0, 1))
        planes.append(np.tile(plane, (1, 2))[:height, :width] * rng.uniform(20, 50) + rng.uniform(70, 180))
    planes[1:] = [0.6 * planes[0] + 0.4 * plane for plane in planes[1:]]  # channels of a photograph go together
    picture = Image.fromarray(np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8))
    _shapes(picture, rng, 12)
    grain = rng.integers(-5, 6, (height, width, 1), dtype=np.int16)
    return _encoded(np.clip(np.asarray(picture, np.int16) + grain, 0, 255).astype(np.uint8), "JPEG", quality=90)


def with_comment(jpeg: bytes, comment: str) -> bytes:
    """The same picture as other bytes: a comment (COM, ITU-T T.81 B.2.4.5) behind the marker that begins it."""
    text = comment.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


@functools.cache
def _noise_bank() -> list[npt.NDArray[np.float32]]:
    """Fields (2048, 2048) of noise whose amplitude falls as 1/f, as in pictures of the world; unit variance."""
    rng = np.random.default_rng(0)
    edge = 2_048
    across, down = np.fft.rfftfreq(edge)[None], np.fft.fftfreq(edge)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / edge)
    fields = []
    for _ in range(4):
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((edge, edge))) * falling)
        fields.append(((field - field.mean()) / field.std()).astype(np.float32))
    return fields


def _shapes(picture: Image.Image, rng: np.random.Generator, count: int) -> None:
    draw = ImageDraw.Draw(picture)
    for number in range(count):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        centre = rng.uniform(0, picture.size, 2)
        corners = centre + rng.uniform(-0.2, 0.2, (3 + number % 3, 2)) * min(picture.size)
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=colour)


def _encoded(pixels: npt.NDArray[np.uint8], kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def short_seconds(seed: list[int]) -> float:
    return round(float(np.random.default_rng(seed).uniform(1, 3)), 2)


def long_seconds(seed: list[int]) -> float:
    """1 to 6 minutes, never close to a multiple of 30 s, where resamplers could differ by a window."""
    rng = np.random.default_rng(seed)
    return float(30 * rng.integers(2, 12) + rng.integers(5, 26))


def sound(seed: list[int], seconds: float) -> bytes:
    """A FLAC, mono, 16 bit: syllables of a gliding voice with overtones, pauses, and a little noise."""
    import soundfile

    rng = np.random.default_rng([*seed, 1])
    count = round(seconds * SAMPLE_RATE)
    anchors = max(2, int(seconds * 4))
    time = np.linspace(0, anchors - 1, count)
    pitch_hz = np.interp(time, range(anchors), rng.uniform(90, 250, anchors))
    loud = np.interp(time, range(anchors), rng.choice([0.0, 0.4, 1.0], anchors))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
    voice = sum(np.sin(overtone * phase) / overtone for overtone in range(1, 8))
    samples = 0.15 * loud * voice + 0.01 * rng.standard_normal(count)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
