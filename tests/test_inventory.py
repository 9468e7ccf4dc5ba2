"""What `batchproj encoders` says of families and shipped spaces is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import command

from batchproj import encode
from batchproj.inventory import families, spaces
from batchproj.space import open_space, resolve, shipped_spaces


@pytest.fixture(autouse=True)
def _an_empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_file_of_encode_is_a_family_with_a_line_of_its_own() -> None:
    found = families()
    assert [family.kind for family in found] == encode.kinds()
    assert all(family.modalities and family.says for family in found)


def test_every_shipped_space_tells_of_each_of_its_encoders() -> None:
    found = {space.name: space for space in spaces()}
    assert sorted(found) == shipped_spaces()
    for space in found.values():
        assert space.about
        for member in space.members:
            assert member.projector or member.dims == space.dim
            assert member.model.startswith("package:") or len(member.revision or "") == 40  # pinned, not a branch


@pytest.mark.parametrize("name", [space.name for space in spaces() if space.here])
def test_what_is_here_has_the_dims_that_are_told(name: str) -> None:
    told = {member.modality: member.dims for member in next(s for s in spaces() if s.name == name).members}
    assert {str(modality): member.dim for modality, member in resolve(open_space(name)).members.items()} == told


def test_a_model_that_two_modalities_share_is_fetched_once() -> None:
    clip = next(space for space in spaces() if space.name == "clip")
    assert not clip.here
    assert clip.download_mb == clip.members[0].download_mb == clip.members[1].download_mb


def test_the_command_lists_them() -> None:
    done = command("encoders")
    assert done.returncode == 0
    assert "clip-clap: 512 dimensions, 1,220 MB to fetch" in done.stdout
    assert "builtin: 384 dimensions, here" in done.stdout
    document = json.loads(command("encoders", "--json").stdout)
    assert {family["kind"] for family in document["families"]} == set(encode.kinds())
    untrained = {space["name"]: space["to_train"] for space in document["spaces"]}
    assert untrained["minilm-dino-whisper"] == ["image", "audio"]
    assert untrained["builtin"] == []


def test_a_space_whose_models_cannot_be_had_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.txt").write_text("a frog")
    done = command("embed", tmp_path / "source", tmp_path / "c", "--space", "clip")
    assert done.returncode == 2
    assert "cannot get model 'openai/clip-vit-base-patch32' at revision 'c237dc49" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "c").exists()
