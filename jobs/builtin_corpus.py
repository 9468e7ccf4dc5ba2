"""What the builtin projectors are trained on: the demo's emoji, more drawings of them, and spoken phrases.

    <letter>/<name>.png .txt .<voice>.flac   the demo's corpus, with more clips
    <letter>/<name>.drawing<n>.png           its drawing again: turned, mirrored, smaller or larger, on other grounds
    phrases/<list>/<number>.txt .<voice>.flac  phrases made of the word lists of `wonderwords`

Further drawings belong to the pair of the first, so those of a held-out emoji are held out as well. No phrase is the
name of an emoji. Same code and wheels, same bytes.
"""

from __future__ import annotations

import io
import random
import re
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

from PIL import Image, ImageEnhance

from batchproj import emoji_corpus
from batchproj.emoji_corpus import IMAGE_PX, VOICES
from batchproj.espeak import SAMPLE_RATE, Espeak

EMOJI_CLIPS = 4
FURTHER_DRAWINGS = 4
PHRASES = {"adjective_noun": 6_000, "noun_noun": 3_000}
CHUNK = 512
SIDES = re.compile(r"\b(left|right|(counter|anti)?clockwise)\b")
"""Names of drawings that say something else in a mirror."""


def build(folder: Path) -> None:
    """Write everything below `folder`."""
    emoji_corpus.build(folder, clips=EMOJI_CLIPS)
    for one in emoji_corpus.emoji():
        first = folder / f"{one.pair}.png"
        draw, has_sides = random.Random(one.name), bool(SIDES.search(one.text))
        for number in range(FURTHER_DRAWINGS):
            first.with_name(f"{one.name}.drawing{number}.png").write_bytes(redrawn(first.read_bytes(), draw, has_sides))
    everything = list(phrases().items())
    chunks = [everything[start : start + CHUNK] for start in range(0, len(everything), CHUNK)]
    # a fresh process a chunk: what eSpeak says depends on what it said before
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        list(pool.map(speak, [folder / "phrases"] * len(chunks), chunks))


def redrawn(png: bytes, draw: random.Random, has_sides: bool = False) -> bytes:
    """A drawing as another hand might have placed it: PNG in, PNG of the same size out.

    What is large may reach beyond the picture a little. What has sides is not mirrored.
    """
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    if draw.random() < 0.5 and not has_sides:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.rotate(draw.uniform(-20, 20), resample=Image.Resampling.BICUBIC)
    px = int(IMAGE_PX * draw.uniform(0.7, 1.15))
    drawing = drawing.resize((px, px), Image.Resampling.BICUBIC)
    white, coloured = (255, 255, 255), tuple(draw.randint(120, 255) for _ in range(3))
    picture = Image.new("RGB", (IMAGE_PX, IMAGE_PX), draw.choice([white, white, coloured]))
    room = IMAGE_PX - px
    x, y = (draw.randint(0, room) if room > 0 else room // 2 for _ in range(2))
    picture.paste(drawing, (x, y), drawing)
    if draw.random() < 0.5:
        picture = ImageEnhance.Color(picture).enhance(draw.uniform(0.4, 1.4))
        picture = ImageEnhance.Brightness(picture).enhance(draw.uniform(0.8, 1.1))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def phrases() -> dict[str, str]:
    """File stem -> phrase: all nouns, and seeded pairs of words; none is the name of an emoji, however it is spelt."""
    nouns, adjectives = (sorted(_words(name) - _words("profanity")) for name in ("noun", "adjective"))
    draw = random.Random(0)
    found = {f"noun/{number:05d}": noun for number, noun in enumerate(nouns)}
    for number in range(PHRASES["adjective_noun"]):
        found[f"adjective_noun/{number:05d}"] = f"{draw.choice(adjectives)} {draw.choice(nouns)}"
    for number in range(PHRASES["noun_noun"]):
        link = draw.choice(["and", "with", "of", "in", "on"])
        found[f"noun_noun/{number:05d}"] = f"{draw.choice(nouns)} {link} {draw.choice(nouns)}"
    taken = {spelt(one.text) for one in emoji_corpus.emoji()}
    return {stem: phrase for stem, phrase in found.items() if spelt(phrase) not in taken}


def _words(name: str) -> set[str]:
    lines = (resources.files("wonderwords") / "assets" / f"{name}list.txt").read_text().split("\n")
    return {line.strip() for line in lines if line.strip()}


def spelt(text: str) -> str:
    """What is heard alike: "ice-cream", "ice cream" and "icecream"."""
    return re.sub("[^a-z0-9]", "", text.lower())


def speak(folder: Path, chunk: list[tuple[str, str]]) -> None:
    """Write text and one clip of each phrase; the voice goes round."""
    import soundfile

    speaker, voices = Espeak(), list(VOICES)
    for stem, phrase in chunk:
        text = folder / f"{stem}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(phrase)
        voice = voices[int(stem.rpartition("/")[2]) % len(voices)]
        samples = speaker.say(phrase, *VOICES[voice])
        soundfile.write(text.with_suffix(f".{voice}.flac"), samples, SAMPLE_RATE, subtype="PCM_16")
