"""Models that would run code: a pickle that writes a file never does, whatever it is called and whoever loads it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file
from tiny_pictures import save_clip, save_timm, save_transformer
from tiny_sound import save_ast, save_whisper
from tiny_text import save_bert, save_clap
from tiny_video import save_videomae

from batchproj.config import read_yaml
from batchproj.errors import SpaceError, WeightsError
from batchproj.project import loads
from batchproj.space import open_space, resolve

NAMES = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "model.pkl",
    "model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "consolidated.00.pth",
    "model.npz",
    "model.joblib",
    "vocab.pkl",
]
KINDS: dict[str, tuple[str, int, Callable[[Path], Any]]] = {
    "text": ("text", 32, save_bert),
    "clip": ("image", 24, save_clip),
    "vision": ("image", 32, lambda folder: save_transformer(folder, "vit")),
    "timm": ("image", 1280, lambda folder: save_timm(folder, "efficientnet_b0")),
    "whisper": ("audio", 32, save_whisper),
    "clap": ("audio", 24, save_clap),
    "audio": ("audio", 32, save_ast),
    "video": ("video", 32, save_videomae),
}


class Writes:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self._path), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


@pytest.fixture
def pickled(marker: Path) -> bytes:
    """What would make the marker; that it would is seen first."""
    data = pickle.dumps(Writes(marker))
    pickle.loads(data).close()
    assert marker.exists()
    marker.unlink()
    return data


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    home = tmp_path_factory.mktemp("models")

    def copy(kind: str, to: Path) -> Path:
        if not (home / kind).exists():
            (home / kind).mkdir()
            KINDS[kind][2](home / kind)
        shutil.copytree(home / kind, to)
        return to

    return copy


def load(kind: str, folder: Path, **fields: Any) -> None:
    """Plan with the model as a run does, and load it as a worker does."""
    modality, width, _ = KINDS[kind]
    encoder = {"kind": "vision" if kind == "timm" else kind, "model": str(folder), "dtype": "fp32", **fields}
    space = folder.parent / "space.yaml"
    member = {"encoder": encoder, **({} if modality == "text" else {"projector": {"kind": "linear"}})}
    document = {"name": "s", "dim": width, modality: member}
    if modality == "text":
        document["dim"] = 32
    space.write_text(yaml.safe_dump(document))
    (member_of,) = resolve(open_space(str(space))).members.values()
    member_of.load(1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_pickle_beside_the_weights_is_not_opened(
    kind: str, saved: Callable[[str, Path], Path], tmp_path: Path, marker: Path, pickled: bytes
) -> None:
    folder = saved(kind, tmp_path / "m")
    for name in NAMES:
        (folder / name).write_bytes(pickled)
    load(kind, folder)
    assert not marker.exists()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_pickle_in_the_place_of_the_weights_is_refused_under_any_name(
    kind: str, saved: Callable[[str, Path], Path], tmp_path: Path, marker: Path, pickled: bytes
) -> None:
    folder = saved(kind, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    for name in [*NAMES, "model.safetensors", "other.safetensors", "model.PT", "model.safetensors.bin"]:
        (folder / name).write_bytes(pickled)
        with pytest.raises((WeightsError, SpaceError)):
            load(kind, folder)
        (folder / name).unlink()
    torch.save({"w": Writes(marker)}, folder / "model.safetensors")  # a zip, as torch writes them
    with pytest.raises(WeightsError, match="cut or damaged"):
        load(kind, folder)
    assert not marker.exists()


@pytest.mark.parametrize("led_to", ["pytorch_model-1.bin", "../evil.bin", "../evil.safetensors", "/evil.safetensors"])
def test_an_index_leads_to_nothing_but_safetensors_beside_it(
    led_to: str, saved: Callable[[str, Path], Path], tmp_path: Path, marker: Path, pickled: bytes
) -> None:
    folder = saved("clip", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"text_projection.weight": "model-1.safetensors", "logit_scale": led_to}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "evil.bin").write_bytes(pickled)
    (folder / "pytorch_model-1.bin").write_bytes(pickled)
    save_file({"logit_scale": np.ones(1, np.float32)}, tmp_path / "evil.safetensors")
    with pytest.raises(WeightsError, match=f"leads to '{led_to}', a .safetensors file beside it was expected"):
        load("clip", folder)
    assert not marker.exists()


def test_a_damaged_index_is_one_line(saved: Callable[[str, Path], Path], tmp_path: Path) -> None:
    folder = saved("clip", tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(WeightsError, match="is no index of weights"):
        load("clip", folder)


def test_an_adapter_leads_to_no_other_model(saved: Callable[[str, Path], Path], tmp_path: Path) -> None:
    folder = saved("clip", tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else", "peft_type": "LORA"}')
    with pytest.raises(WeightsError, match="is an adapter"):
        load("clip", folder)


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


CODE = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
CODE |= {"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil", "AutoFeatureExtractor": "evil.Evil"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "timm"])
def test_code_that_comes_with_a_model_is_not_run(
    kind: str, saved: Callable[[str, Path], Path], tmp_path: Path, marker: Path
) -> None:
    folder = saved(kind, tmp_path / "m")
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            changed(folder / name, auto_map=CODE, trust_remote_code=True)
    load(kind, folder)  # transformers has the class itself
    assert not marker.exists()
    changed(folder / "config.json", model_type="evil")
    with pytest.raises(SpaceError):
        load(kind, folder)
    assert not marker.exists()


def test_attention_code_of_the_hub_is_not_fetched(saved: Callable[[str, Path], Path], tmp_path: Path) -> None:
    folder = saved("clip", tmp_path / "m")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    for name, asked in [
        ("attn_implementation", "someone/kernel"),
        ("_attn_implementation", "kernels-community/flash-attn2@v1:f"),
        ("_attn_implementation_internal", "flash_attention_2"),
        ("experts_implementation", "someone/experts"),
        ("attn_implementation", {"text_config": "someone/kernel"}),
    ]:
        for where in ({name: asked}, {"vision_config": {**vision, name: asked}}):
            shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
            changed(tmp_path / "copy/config.json", **where)
            with pytest.raises(SpaceError, match="asks for the attention code"):
                load("clip", tmp_path / "copy")
    changed(folder / "config.json", _attn_implementation="sdpa")
    load("clip", folder)


def test_compiled_code_of_the_hub_is_not_fetched(saved: Callable[[str, Path], Path], tmp_path: Path) -> None:
    from transformers.integrations import hub_kernels

    assert not hub_kernels._kernels_enabled
    folder = saved("clip", tmp_path / "m")
    changed(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(SpaceError, match="quantised"):
        load("clip", folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_args": {"checkpoint_path": "{evil}"}}, "sets model_args.checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "sets model_args.pretrained"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "{evil}"}}}, "sets model_args.pretrained_cfg_overlay"),
        ({"model_args": {"pretrained_strict": False}}, "sets model_args.pretrained_strict"),
        ({"architecture": "hf-hub:someone/model"}, "leads to another model"),
        ({"architecture": "local-dir:{evil}"}, "leads to another model"),
    ],
)
def test_a_timm_folder_leads_to_no_other_weights(
    fields: dict[str, Any], said: str, saved: Callable[[str, Path], Path], tmp_path: Path, marker: Path, pickled: bytes
) -> None:
    folder = saved("timm", tmp_path / "m")
    (tmp_path / "evil.pth").write_bytes(pickled)
    fields = json.loads(json.dumps(fields).replace("{evil}", str(tmp_path / "evil.pth")))
    changed(folder / "config.json", **fields)
    with pytest.raises(SpaceError, match=said):
        load("timm", folder)
    assert not marker.exists()


def test_a_pinned_pickle_of_a_package_runs_no_code(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_wheel/model").mkdir(parents=True)
    (tmp_path / "some_wheel/__init__.py").write_text("")
    torch.save({"w": Writes(marker)}, tmp_path / "some_wheel/model/weights.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = Path("package:some_wheel/model")
    space = tmp_path / "space.yaml"

    def write(digest: str) -> None:
        encoder = {"kind": "vision", "model": str(model), "architecture": "efficientnet_lite0", "digest": digest}
        member = {"encoder": encoder, "projector": {"kind": "linear"}}
        space.write_text(yaml.safe_dump({"name": "s", "dim": 8, "image": member}))

    write("sha256:0")
    with pytest.raises(WeightsError) as refused:
        resolve(open_space(str(space)))
    write(str(refused.value).split(" is ")[1].split(",")[0])
    (member,) = resolve(open_space(str(space))).members.values()
    with pytest.raises(pickle.UnpicklingError):
        member.load(1)
    assert not marker.exists()


def test_a_projector_is_read_as_safetensors_alone(pickled: bytes, marker: Path) -> None:
    with pytest.raises(SpaceError):
        loads(pickled)
    assert not marker.exists()


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch X']", "!!python/name:os.system", "!!python/object/new:os.system [x]"],
)
def test_yaml_makes_no_objects(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpaceError, match="is not YAML"):
        read_yaml(f"name: {tag}\n", "space")
    assert list(tmp_path.iterdir()) == []
