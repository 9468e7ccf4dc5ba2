"""A model that a space cannot use: one line that says what to do, before anything of the source is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import command
from tiny_text import save_clap, save_qwen3

from batchproj.errors import SpaceError, WeightsError
from batchproj.space import open_space, resolve

CHATGLM = {"model_type": "chatglm", "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMModel"}, "hidden_size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    made = {"clip": tiny_clip, "clap": save_clap(home / "clap"), "qwen3": save_qwen3(home / "qwen3")}

    def variant(name: str, of: str, leave_out: tuple[str, ...] = (), **config: Any) -> None:
        made[name] = home / name
        shutil.copytree(made[of], made[name], ignore=shutil.ignore_patterns(*leave_out))
        if config:
            (made[name] / "config.json").write_text(json.dumps(config))

    variant("chatglm", "qwen3", **CHATGLM)
    variant("newer", "qwen3", model_type="qwen99", hidden_size=32)
    variant("hubert", "clap", model_type="hubert")
    variant("mute", "qwen3", ("tokenizer*",))
    variant("mute-clip", "clip", ("tokenizer*",))
    variant("mute-clap", "clap", ("tokenizer*",))
    variant("blind-clip", "clip", ("preprocessor_config.json",))
    variant("deaf-clap", "clap", ("preprocessor_config.json",))
    variant("deaf-hubert", "hubert", ("preprocessor_config.json",))
    return made


def space_of(path: Path, modality: str, kind: str, model: str) -> Path:
    document = {"name": "s", "dim": 32, modality: {"encoder": {"kind": kind, "model": model}}}
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("modality", "kind", "model", "said"),
    [
        ("text", "text", "chatglm", r"'chatglm' in .* needs the Python code that comes with the model, .* is not run"),
        ("image", "clip", "chatglm", r"'chatglm' in .* needs the Python code that comes with the model"),
        ("audio", "whisper", "clip", r"is not a Whisper model: use kind: clip, which takes image, video and text"),
        ("text", "text", "newer", r"transformers [\d.]+ knows no model type 'qwen99'"),
        ("text", "text", "mute", r"no tokenizer in .*mute: tokenizer\.json"),
        ("text", "clip", "mute-clip", r"no tokenizer in .*mute-clip"),
        ("text", "clap", "mute-clap", r"no tokenizer in .*mute-clap"),
        ("image", "clip", "blind-clip", r"no preprocessor_config\.json in .*blind-clip"),
        ("audio", "clap", "deaf-clap", r"no preprocessor_config\.json in .*deaf-clap"),
        ("audio", "audio", "deaf-hubert", r"no preprocessor_config\.json in .*deaf-hubert"),
        ("audio", "clip", "clip", r"encoder kind 'clip' takes image or text or video, not audio"),
        ("image", "clap", "clap", r"encoder kind 'clap' takes audio or text, not image"),
        ("text", "audio", "hubert", r"encoder kind 'audio' takes audio, not text"),
        ("text", "text", "clip", r"'clip' in .* has towers for several modalities: use kind: clip"),
        ("text", "text", "hubert", r"'hubert' in .* is no text model: use kind: audio"),
        ("image", "vision", "clip", r"'clip' in .* is no image model of kind vision: use kind: clip"),
        ("audio", "audio", "clap", r"'clap' in .* is no sound model of kind audio: use kind: clap"),
        ("audio", "whisper", "hubert", r"'hubert' in .* is not a Whisper model: use kind: audio"),
        ("audio", "clap", "hubert", r"'hubert' in .* is not a CLAP model: use kind: audio"),
        ("image", "clip", "hubert", r"'hubert' in .* is not a dual tower kind clip knows: use kind: audio"),
        ("text", "clip", "qwen3", r"'qwen3' in .* is not a dual tower kind clip knows: clip or siglip was expected"),
    ],
)
def test_a_model_that_does_not_serve(
    folders: dict[str, Path], tmp_path: Path, modality: str, kind: str, model: str, said: str
) -> None:
    space = space_of(tmp_path / "space.yaml", modality, kind, str(folders[model]))
    with pytest.raises(SpaceError, match=said) as refused:
        resolve(open_space(str(space)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model", ["nobody/no-such-model", "/nowhere/model", "package:no_such_wheel/model"])
def test_a_model_that_is_not_there(tmp_path: Path, model: str) -> None:
    with pytest.raises(WeightsError) as refused:
        resolve(open_space(str(space_of(tmp_path / "space.yaml", "text", "text", model))))
    assert "\n" not in str(refused.value)


def test_an_unknown_kind_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"no encoder kind 'audi'; did you mean 'audio'\? present are audio, clap"):
        resolve(open_space(str(space_of(tmp_path / "space.yaml", "audio", "audi", "m"))))


@pytest.mark.parametrize("verb", ["plan", "embed"])
def test_nothing_of_the_source_is_read_before(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def never(*_: object, **__: object) -> Callable[..., None]:
        raise AssertionError("the source was opened")

    monkeypatch.setattr("batchproj.source.listing.list_objects", never)
    (tmp_path / "corpus").mkdir()
    space = space_of(tmp_path / "space.yaml", "text", "text", str(folders["chatglm"]))
    done = command(verb, tmp_path / "corpus", tmp_path / "c", "--space", space)
    assert done.returncode == 2
    assert "needs the Python code that comes with the model" in done.stderr
    assert not (tmp_path / "c").exists()
