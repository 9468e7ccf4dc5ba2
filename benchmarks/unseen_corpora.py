"""Four small paired corpora that nothing was tuned on, as arrays: cached features and the vectors of their captions.

emoji    OpenMoji drawings with Unicode's own names of them, which word things differently than the demo's
scenes   one or two coloured shapes on a ground: "a small red star above a blue ring on grey"
duos     JPEGs of two drawings side by side on a coloured ground: "broom beside fox"
spoken   phrases of dictionary words, said by many eSpeak voices
"""

from __future__ import annotations

import io
import math
import random
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from batchproj.decode.item import decode_pieces
from batchproj.decode.limits import Limits
from batchproj.emoji_corpus import IMAGE_PX, VOICES, emoji
from batchproj.schema import Modality
from batchproj.space import open_space, resolve

Array = npt.NDArray[np.float32]
Drawn = tuple[bytes, str]

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "orange": (250, 140, 20),
    "purple": (140, 40, 170),
    "pink": (250, 150, 190),
}
GROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "light blue": (180, 210, 240)}
SIZES = {"small": 22, "large": 48, "": 34}
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
PLACES = {"above": [(128, 70), (128, 186)], "left of": [(70, 128), (186, 128)]}
TOO_MUCH_ALIKE = ("skin", "button", "o\u2019clock", "thirty")
BATCH = 32


@dataclass(frozen=True)
class Corpus:
    """features (N, D) and unit vectors (N, K) of the captions, a pair a row, in no order."""

    features: Array
    captions: Array


def load(name: str, cache: Path) -> Corpus:
    """Made the first time, read from the cache afterwards."""
    file = cache / f"{name}.npz"
    if not file.exists():
        modality, make = CORPORA[name]
        made = list(make())
        corpus = Corpus(_encode(modality, [data for data, _ in made]), _texts([caption for _, caption in made]))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, features=corpus.features, captions=corpus.captions)
    arrays = np.load(file)
    return Corpus(arrays["features"], arrays["captions"])


def _encode(modality: Modality, items: list[bytes]) -> Array:
    embedder = resolve(open_space("builtin")).members[modality].load(threads=2)
    segments = [next(decode_pieces(data, modality, embedder.spec, Limits())).segments[0] for data in items]
    batches = [embedder.encode(segments[start : start + BATCH]) for start in range(0, len(segments), BATCH)]
    return np.concatenate(batches).astype(np.float32)


def _texts(captions: list[str]) -> Array:
    """As the builtin space has them: its text encoder has no projector."""
    features = _encode(Modality.TEXT, [caption.encode() for caption in captions])
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _svg(path: str) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_path=path, width=IMAGE_PX, height=IMAGE_PX, skip_system_fonts=True))


def _emoji() -> Iterable[Drawn]:
    import emoji as names

    unicode = {}
    for characters, facts in names.EMOJI_DATA.items():
        bare = characters.replace("\ufe0f", "")
        if len(bare) == 1:
            unicode[facts["en"].strip(":").replace("_", " ")] = unicodedata.name(bare, "").lower()
    found = [(one.svg, unicode[one.text]) for one in emoji() if unicode.get(one.text)]
    random.Random(1).shuffle(found)
    return [(_svg(path), caption) for path, caption in found[:1200]]


def _file(picture: Image.Image, file_type: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_type, **options)
    return file.getvalue()


def _scenes() -> Iterable[Drawn]:
    draw = random.Random(2)
    seen: set[str] = set()
    while len(seen) < 1500:
        picture, caption = _scene(draw)
        if caption not in seen:
            seen.add(caption)
            yield _file(picture, "PNG"), caption


def _scene(draw: random.Random) -> tuple[Image.Image, str]:
    ground = draw.choice(list(GROUNDS))
    picture = Image.new("RGB", (256, 256), GROUNDS[ground])
    two = draw.random() < 0.6
    things = [(draw.choice(list(SIZES)), draw.choice(list(COLOURS)), draw.choice(SHAPES)) for _ in range(2)]
    said = [" ".join(word for word in ("a", *thing) if word) for thing in things]
    if two:
        where = draw.choice(list(PLACES))
        caption = f"{said[0]} {where} {said[1]} on {ground}"
        places = [(x + draw.randint(-8, 8), y + draw.randint(-8, 8)) for x, y in PLACES[where]]
    else:
        caption = f"{said[0]} on a {ground} ground"
        places = [(draw.randint(90, 166), draw.randint(90, 166))]
    for (size, colour, shape), (x, y) in zip(things, places, strict=False):
        _draw_shape(ImageDraw.Draw(picture), shape, COLOURS[colour], x, y, SIZES[size])
    return picture, caption


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: int, y: int, r: int) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        canvas.ellipse(box, fill=colour)
    elif shape == "ring":
        canvas.ellipse(box, outline=colour, width=int(r / 3))
    elif shape == "square":
        canvas.rectangle(box, fill=colour)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    elif shape == "cross":
        canvas.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
        canvas.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
    else:
        spokes = [(r if number % 2 == 0 else r * 0.4, number * math.pi / 5) for number in range(10)]
        canvas.polygon([(x + c * math.sin(turn), y - c * math.cos(turn)) for c, turn in spokes], fill=colour)


def _duos() -> Iterable[Drawn]:
    draw = random.Random(3)
    pool = [one for one in emoji() if not any(word in one.text for word in TOO_MUCH_ALIKE)]
    draw.shuffle(pool)
    drawings: dict[str, Image.Image] = {}
    seen: set[str] = set()
    while len(seen) < 1000:
        both = draw.sample(pool[:220], 2)
        caption = " beside ".join(one.text for one in both)
        if caption in seen:
            continue
        seen.add(caption)
        picture = Image.new("RGB", (360, 240), tuple(draw.randint(120, 255) for _ in range(3)))
        for side, one in enumerate(both):
            if one.name not in drawings:
                drawings[one.name] = Image.open(io.BytesIO(_svg(one.svg))).convert("RGBA")
            px = draw.randint(120, 175)
            drawing = drawings[one.name].resize((px, px))
            picture.paste(drawing, (side * 180 + draw.randint(0, 180 - px), draw.randint(0, 60)), drawing)
        yield _file(picture, "JPEG", quality=draw.randint(60, 95)), caption


def _spoken() -> Iterable[Drawn]:
    import soundfile

    from batchproj.espeak import SAMPLE_RATE, Espeak

    def words(name: str) -> list[str]:
        lines = (resources.files("wonderwords") / "assets" / f"{name}list.txt").read_text().split("\n")
        return sorted({line.strip() for line in lines if line.strip()})

    draw, nouns, adjectives, speaker = random.Random(4), words("noun"), words("adjective"), Espeak()
    for _ in range(1500):
        named, called = f"{draw.choice(adjectives)} {draw.choice(nouns)}", draw.choice(nouns)
        phrase = draw.choice([named, called, f"the {draw.choice(nouns)} is {draw.choice(adjectives)}"])
        file = io.BytesIO()
        samples = speaker.say(phrase, *VOICES[draw.choice(list(VOICES))])
        soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        yield file.getvalue(), phrase


CORPORA: dict[str, tuple[Modality, Callable[[], Iterable[Drawn]]]] = {
    "emoji": (Modality.IMAGE, _emoji),
    "scenes": (Modality.IMAGE, _scenes),
    "duos": (Modality.IMAGE, _duos),
    "spoken": (Modality.AUDIO, _spoken),
}
