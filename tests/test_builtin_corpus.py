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
    for each in several:  # the whole thing is still in the picture
        drawn = (np.abs(each.astype(int) - each[0, 0]) > 20).any(axis=2)
        assert 0.4 * 120 * 60 < drawn.sum() < 1.5 * 120 * 60
    assert len({each.tobytes() for each in several}) == 4


def test_no_phrase_is_the_name_of_an_emoji(builtin_corpus: object) -> None:
    phrases = builtin_corpus.phrases()
    assert phrases == builtin_corpus.phrases()
    assert len(phrases) > 10_000
    assert not {phrase.lower() for phrase in phrases.values()} & {one.text.lower() for one in emoji_corpus.emoji()}
    assert {stem.partition("/")[0] for stem in phrases} == {"noun", *builtin_corpus.PHRASES}
