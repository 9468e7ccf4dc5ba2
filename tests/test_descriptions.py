"""What an encoder is like is found out once a machine, and anew whenever anything of it is another."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchproj import descriptions
from batchproj.encode import Description
from batchproj.encode.vision import Config
from batchproj.errors import SpaceError
from batchproj.schema import Modality
from batchproj.space import open_space, resolve, resolve_member
from batchproj.weights import LocalModel
from batchproj.weights import resolve as resolve_weights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Which digests an encoder was asked about; what is remembered lies below `tmp_path`."""
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path / "cache"))
    found: list[str] = []
    describe = Config.describe

    def counted(self: Config, model: LocalModel, modality: Modality) -> Description:
        found.append(model.digest)
        return describe(self, model, modality)

    monkeypatch.setattr(Config, "describe", counted)
    return found


def test_the_second_time_nobody_is_asked_and_the_answer_is_equal(asked: list[str]) -> None:
    first = resolve_member(open_space("builtin"), Modality.IMAGE)
    assert resolve_member(open_space("builtin"), Modality.IMAGE) == first
    assert len(asked) == 1


@pytest.mark.parametrize("what", ["nothing", "digest", "file", "setting", "modality", "cache", "library", "code"])
def test_another_model_setting_library_or_code_is_asked_about_anew(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    member = resolve_member(open_space("builtin"), Modality.IMAGE)
    (tmp_path / "model").mkdir()
    config, model, modality, cache = member.config, LocalModel(tmp_path / "model", "sha256:1"), Modality.IMAGE, "pooled"
    for method in ("describe", "describe_tokens"):
        monkeypatch.setattr(Config, method, lambda *_: asked.append("anew") or Description(1, {}))
    descriptions.described(config, model, modality, "pooled")
    asked.clear()
    version = descriptions._version
    match what:
        case "digest":
            model = dataclasses.replace(model, digest="sha256:2")
        case "file":
            (tmp_path / "elsewhere").write_text("{}")
            (tmp_path / "model/modules.json").symlink_to(tmp_path / "elsewhere")
        case "setting":
            config = config.model_copy(update={"dtype": "fp32"})
        case "modality":
            modality = Modality.VIDEO
        case "cache":
            cache = "tokens"
        case "library":
            monkeypatch.setattr(descriptions, "_version", lambda name: "tomorrow" if name == "timm" else version(name))
        case "code":
            monkeypatch.setattr(descriptions, "_CODE", "a line was changed")
    descriptions.described(config, model, modality, cache)
    assert asked == ([] if what == "nothing" else ["anew"])


def test_a_damaged_file_is_written_again_and_errors_are_not_kept(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> Description:
        raise SpaceError("no such architecture")

    first = resolve_member(open_space("builtin"), Modality.IMAGE)
    [file] = (tmp_path / "cache" / "descriptions").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert resolve_member(open_space("builtin"), Modality.IMAGE) == first
    assert file.read_bytes() == whole
    monkeypatch.setattr(Config, "describe", refuse)
    for _ in range(2):
        with pytest.raises(SpaceError, match="no such architecture"):
            descriptions.described(first.config, LocalModel(tmp_path, "sha256:none"), Modality.IMAGE, "pooled")
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_home_that_cannot_be_written_to_is_no_error(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder was to be")
    first = resolve_member(open_space("builtin"), Modality.IMAGE)
    assert resolve_member(open_space("builtin"), Modality.IMAGE) == first
    assert len(asked) == 2


def test_a_command_over_texts_imports_no_library_of_pictures(tmp_path: Path) -> None:
    """What takes seconds is told from the modules that are there at the end."""
    told = "import sys; from batchproj.space import open_space, resolve; resolve(open_space('builtin'));"
    told += "print('timm' in sys.modules)"
    env = os.environ | {"BATCHPROJ_CACHE": str(tmp_path / "cache")}
    seen = [
        subprocess.run([sys.executable, "-c", told], env=env, check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    ]
    assert seen == ["True", "False"]


def test_remembered_or_not_it_is_what_the_encoder_says() -> None:
    for space, cache in (("builtin", "pooled"), ("builtin-tokens", "tokens")):
        for modality, member in resolve(open_space(space)).members.items():
            model = resolve_weights(member.config.model, member.config.revision, member.model_digest)
            ask = member.config.describe if cache == "pooled" else member.config.describe_tokens
            said = ask(model, modality)
            for _ in range(2):
                found = descriptions.described(member.config, model, modality, cache)
                assert json.dumps(found.decides, sort_keys=True) == json.dumps(said.decides, sort_keys=True)
                assert dataclasses.replace(found, decides={}) == dataclasses.replace(said, decides={})


def test_without_a_home_nothing_is_remembered(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(descriptions, "cache_root", nobody)
    first = resolve_member(open_space("builtin"), Modality.IMAGE)
    assert resolve_member(open_space("builtin"), Modality.IMAGE) == first
    assert len(asked) == 2
