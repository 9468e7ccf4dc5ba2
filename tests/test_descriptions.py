"""What an encoder is like is found out once a machine, and anew whenever anything of it is another."""

from __future__ import annotations

import dataclasses
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


@pytest.mark.parametrize("what", ["digest", "setting", "modality", "library", "code"])
def test_another_model_setting_library_or_code_is_asked_about_anew(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    member = resolve_member(open_space("builtin"), Modality.IMAGE)
    config, model, modality = member.config, LocalModel(Path(), member.model_digest), Modality.IMAGE
    monkeypatch.setattr(Config, "describe", lambda *_: asked.append("anew") or Description(1, {}))
    match what:
        case "digest":
            model = dataclasses.replace(model, digest="sha256:" + "0" * 64)
        case "setting":
            config = config.model_copy(update={"dtype": "fp32"})
        case "modality":
            modality = Modality.VIDEO
        case "library":
            monkeypatch.setattr(descriptions, "version", lambda name: f"{name} of tomorrow")
        case "code":
            monkeypatch.setattr(descriptions, "_code", lambda: "a line was changed")
    assert descriptions.described(config, model, modality, "pooled").dim == 1
    assert asked[1:] == ["anew"]


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


def test_it_is_the_same_as_without(asked: list[str]) -> None:
    resolve(open_space("builtin-tokens"))
    first, again = resolve(open_space("builtin")), resolve(open_space("builtin"))
    assert first.fingerprint == again.fingerprint
    assert len(asked) == 1, "tokens are described by another method"
