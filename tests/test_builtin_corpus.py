"""The corpus of the builtin projectors: what is made beside the demo's."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchproj import emoji_corpus


@pytest.fixture
def builtin_corpus(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "jobs"))
    import builtin_corpus

    yield builtin_corpus
    sys.modules.pop("builtin_corpus")


def test_a_further_drawing_is_another_picture_of_the_same_thing(builtin_corpus: object) -> None:
    drawing = Image.new("RGBA", (256, 256))
    drawing.paste((200, 30, 30, 255), (60, 100, 180, 160))
    file = io.BytesIO()
    drawing.save(file, "PNG")
    made = [builtin_corpus.redrawn(file.getvalue(), random.Random("frog")) for _ in range(2)]
    assert made[0] == made[1]
    draw = random.Random("frog")
    several = [np.asarray(Image.open(io.BytesIO(builtin_corpus.redrawn(file.getvalue(), draw)))) for _ in range(4)]
    assert all(each.shape == (256, 256, 3) for each in several)
    for each in several:  # most of the thing is still in the picture, if smaller or larger
        drawn = (np.abs(each.astype(int) - each[0, 0]) > 20).any(axis=2)
        assert 0.4 * 120 * 60 < drawn.sum() < 1.5 * 120 * 60
    assert len({each.tobytes() for each in several}) == 4


def test_no_phrase_is_the_name_of_an_emoji(builtin_corpus: object) -> None:
    phrases = builtin_corpus.phrases()
    assert phrases == builtin_corpus.phrases()
    assert len(phrases) > 10_000
    spelt = builtin_corpus.spelt
    assert not {spelt(phrase) for phrase in phrases.values()} & {spelt(one.text) for one in emoji_corpus.emoji()}
    assert {stem.partition("/")[0] for stem in phrases} == {"noun", *builtin_corpus.PHRASES}


def test_what_has_sides_is_not_mirrored(builtin_corpus: object) -> None:
    arrow = Image.new("RGBA", (256, 256))
    arrow.paste((200, 30, 30, 255), (40, 100, 120, 160))  # on the left
    file = io.BytesIO()
    arrow.save(file, "PNG")

    def on_the_left(seed: int, has_sides: bool) -> bool:
        made = builtin_corpus.redrawn(file.getvalue(), random.Random(seed), has_sides)
        drawn = np.asarray(Image.open(io.BytesIO(made)))
        columns = np.flatnonzero((np.abs(drawn.astype(int) - drawn[0, 0]) > 20).any(axis=(0, 2)))
        return columns.mean() < 128

    assert not all(on_the_left(seed, has_sides=False) for seed in range(8))
    assert all(on_the_left(seed, has_sides=True) for seed in range(8))
    names = ("left arrow", "copyright", "anticlockwise")
    assert [bool(builtin_corpus.SIDES.search(name)) for name in names] == [True, False, True]
