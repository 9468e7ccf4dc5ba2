"""Videos by image models: the mean of their frames, as the models themselves give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModel, ViTConfig, ViTModel

from batchproj.encode import Description, Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.media import ImageSpec, Segment, VideoSpec
from batchproj.schema import Modality
from batchproj.segments import VideoSegments
from batchproj.space import open_space, resolve
from batchproj.weights import resolve as resolve_weights

LENGTHS = (3, 8, 1, 5, 8, 2)


def videos(lengths: tuple[int, ...] = LENGTHS) -> list[Segment]:
    rng = np.random.default_rng(5)
    return [Segment(rng.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8), 0, 1) for length in lengths]


def build(kind: str, folder: Path, modality: Modality = Modality.VIDEO, **fields: Any) -> Encoder:
    config = parse_config({"kind": kind, "model": str(folder), **fields}, "test")
    return config.build(resolve_weights(str(folder), None, None), modality, 1)


def described(kind: str, folder: Path, **fields: Any) -> tuple[Description, Description]:
    config = parse_config({"kind": kind, "model": str(folder), **fields}, "test")
    model = resolve_weights(str(folder), None, None)
    return config.describe(model, Modality.VIDEO), config.describe_tokens(model, Modality.VIDEO)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    values = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def cosines(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = (one * other).sum(-1)
    return result / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.999999), ("bf16", 0.999)])
def test_clip_is_mean_pooled_as_clip4clip_does_it(tiny_clip: Path, dtype: str, least: float) -> None:
    """`visual_output / norm`, then the mean over the frames: "meanP" of CLIP4Clip's modules/modeling.py."""
    model = AutoModel.from_pretrained(tiny_clip, local_files_only=True).eval()
    mean, std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    expected = []
    for video in videos():
        pixels = (np.asarray(video.data).astype(np.float32) / 255 - mean) / std
        with torch.inference_mode():
            frames = model.get_image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
        expected.append((frames / frames.norm(dim=-1, keepdim=True)).mean(0).numpy())
    encoder = build("clip", tiny_clip, dtype=dtype)
    together = encoder.encode(videos())
    alone = np.concatenate([encoder.encode([video]) for video in videos()])
    np.testing.assert_array_equal(together, alone)
    assert cosines(together, np.stack(expected)).min() >= least


@pytest.mark.parametrize("kind", ["clip", "vision"])
def test_tokens_are_the_frames_features_as_images(kind: str, tiny_clip: Path, vit: Path) -> None:
    folder = tiny_clip if kind == "clip" else vit
    encoder, images = build(kind, folder), build(kind, folder, Modality.IMAGE)
    tokens = encoder.encode_tokens(videos())
    pooled = encoder.encode(videos())
    assert [len(each) for each in tokens] == list(LENGTHS)
    for video, frames_TD, feature_D in zip(videos(), tokens, pooled, strict=True):
        of_images = images.encode([Segment(frame) for frame in np.asarray(video.data)])
        if kind == "clip":
            of_images = of_images / np.linalg.norm(of_images, axis=1, keepdims=True)
        np.testing.assert_array_equal(frames_TD, of_images)
        np.testing.assert_array_equal(feature_D, frames_TD.mean(0))
    assert encoder.encode([]).shape == (0, pooled.shape[1])
    assert encoder.encode_tokens([]) == []


def test_a_row_never_shows_its_neighbours(vit: Path) -> None:
    encoder = build("vision", vit, dtype="bf16")
    segments = videos((4,) * 11)
    whole = encoder.encode(segments)
    for chosen in ([0], [5], [1, 2], [9, 3, 4]):
        np.testing.assert_array_equal(encoder.encode([segments[i] for i in chosen]), whole[chosen])


def test_descriptions(tiny_clip: Path, vit: Path) -> None:
    pooled, tokens = described("clip", tiny_clip)
    assert (pooled.dim, tokens.dim, tokens.mean_pooled, pooled.frames) == (24, 24, True, None)
    assert (pooled.decides["tower"], pooled.decides["frames"]) == ("image", "mean of unit features")
    pooled, tokens = described("vision", vit, pooling="mean")
    assert (pooled.dim, tokens.dim, tokens.mean_pooled) == (32, 32, True)
    assert (pooled.decides["frames"], pooled.decides["pooling"]) == ("mean", "mean")
    assert tokens.decides == pooled.decides
    spec = build("vision", vit).spec
    assert spec == VideoSpec(ImageSpec(32, 32, 32, "squash", "bilinear"), VideoSegments())


def test_a_space_says_where_videos_are_cut(tiny_clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"

    def member(settings: str) -> Any:
        file.write_text(f"dim: 24\nvideo: {{encoder: {{kind: clip, model: {tiny_clip}}}{settings}}}\n")
        return resolve(open_space(str(file))).members[Modality.VIDEO]

    plain, cut = member(""), member(", segments: {seconds: 4, frames: 3, at: scene}")
    assert plain.segments == VideoSegments()
    said = {"seconds": 4.0, "frames": 3, "at": "scene", "min_seconds": 1.0, "cut": 20.0, "epoch": 1}
    assert cut.feature_doc["segments"] == said
    assert plain.feature_doc["segments"]["seconds"] == 10
    assert plain.feature_fp != cut.feature_fp
    assert cut.load(1).spec.segments == VideoSegments(seconds=4, frames=3, at="scene")
    with pytest.raises(SpaceError, match=r"video\.segments: unknown key 'frame'; did you mean 'frames'"):
        member(", segments: {frame: 3}")
    with pytest.raises(SpaceError, match=r"video\.segments: 'at' is '[a-z]+', expected one of 'length', 'scene'"):
        member(", segments: {at: scenes}")
    file.write_text(f"dim: 24\nimage: {{encoder: {{kind: clip, model: {tiny_clip}}}, segments: {{seconds: 3}}}}\n")
    with pytest.raises(SpaceError, match="image: items of image are not cut; leave out 'segments'"):
        resolve(open_space(str(file)))
