"""VideoMAE and X-CLIP, tiny ones of random weights, against transformers called directly; exact rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from films import film
from PIL import Image
from tiny_video import GEOMETRY, MOMENTS, PIXELS, SMALL, WORDS, save_videomae, save_xclip
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEModel,
    XCLIPModel,
)
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from whole_item import decode

from batchproj.decode.image import fitted
from batchproj.decode.limits import Limits
from batchproj.encode import Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.media import ImageSpec, Segment, TextSpec, VideoSpec
from batchproj.model_folder import video_input
from batchproj.schema import Modality
from batchproj.segments import VideoSegments
from batchproj.space import open_space, resolve
from batchproj.weights import LocalModel
from batchproj.weights import resolve as resolve_weights

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_videomae(tmp_path_factory.mktemp("videomae"))


@pytest.fixture(scope="module")
def xclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_xclip(tmp_path_factory.mktemp("xclip"))


def build(folder: Path, modality: Modality = Modality.VIDEO, **fields: Any) -> Encoder:
    config = parse_config({"kind": "video", "model": str(folder), **fields}, "test")
    return config.build(resolve_weights(str(folder), None, None), modality, 1)


def videos(count: int) -> list[Segment]:
    """Smooth waves that move: nearer to films than noise is."""
    rng = np.random.default_rng(3)
    t, y, x = np.mgrid[0:4, 0:32, 0:32] / np.array([4, 32, 32]).reshape(3, 1, 1, 1)
    found = []
    for _ in range(count):
        colours = [np.sin(rng.uniform(1, 9, 3) @ np.stack([t, y, x]).reshape(3, -1)).reshape(t.shape) for _ in "rgb"]
        found.append(Segment(np.clip(np.stack(colours, -1) * 120 + 128, 0, 255).astype(np.uint8), 0, 1))
    return found


def reference(folder: Path, segments: list[Segment]) -> Array:
    """Pooled features of transformers' own model on its own processor's pixels."""
    processor = VideoMAEImageProcessorPil(**GEOMETRY, **MOMENTS)
    clips = [[np.asarray(frame) for frame in np.asarray(segment.data)] for segment in segments]
    pixels = processor(clips, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        if "videomae" in folder.name:
            states = VideoMAEModel.from_pretrained(folder).eval()(pixels).last_hidden_state
            features: Array = states.mean(1).numpy()
        else:
            features = XCLIPModel.from_pretrained(folder).eval().get_video_features(pixels).pooler_output.numpy()
    return features


def cosines(one: Array, other: Array) -> Array:
    result: Array = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    return result


@pytest.mark.parametrize("family", ["videomae", "xclip"])
@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_parity_alone_and_in_a_batch(family: str, dtype: str, least: float, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    segments = videos(7)
    expected = reference(folder, segments)
    encoder = build(folder, dtype=dtype)
    together = encoder.encode(segments)
    alone = np.concatenate([encoder.encode([segment]) for segment in segments])
    np.testing.assert_array_equal(together, alone)
    assert cosines(together, expected).min() >= least
    if dtype == "fp32":
        np.testing.assert_allclose(together, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["videomae", "xclip"])
def test_tokens_are_states_over_time_and_their_mean_is_the_feature(family: str, request: pytest.FixtureRequest) -> None:
    encoder = build(request.getfixturevalue(family), dtype="fp32")
    tokens, pooled = encoder.encode_tokens(videos(3)), encoder.encode(videos(3))
    assert [states.shape for states in tokens] == [({"videomae": 2, "xclip": 4}[family], 32)] * 3
    np.testing.assert_array_equal(np.stack([states.mean(0) for states in tokens]), pooled)
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.parametrize("modality", [Modality.VIDEO, Modality.TEXT])
def test_a_row_never_shows_its_neighbours(xclip: Path, modality: Modality) -> None:
    encoder = build(xclip, modality)
    texts = [Segment(" ".join(WORDS[: 1 + number % 9]) + f" w{number % 7}") for number in range(11)]
    segments = videos(11) if modality is Modality.VIDEO else texts
    whole = encoder.encode(segments)
    order = np.random.default_rng(0).permutation(11)
    np.testing.assert_array_equal(encoder.encode([segments[i] for i in order]), whole[order])
    for chosen in ([0], [5], [1, 2], [9, 3, 4]):
        np.testing.assert_array_equal(encoder.encode([segments[i] for i in chosen]), whole[chosen])


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_xclip_texts(xclip: Path, dtype: str, least: float) -> None:
    model = XCLIPModel.from_pretrained(xclip).eval()
    encoder = build(xclip, Modality.TEXT, dtype=dtype)
    texts = {"w1 w2": [1, 2, 15], "w3": [3, 15], " ".join(WORDS): [*range(14), 15], "w2 " * 50: [2] * 19 + [15]}
    found = encoder.encode([Segment(text) for text in texts])
    for feature, ids in zip(found, texts.values(), strict=True):
        with torch.inference_mode():
            expected = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0].numpy()
        assert cosines(feature, expected) >= least
    assert [len(states) for states in encoder.encode_tokens([Segment("w1 w2"), Segment("w3")])] == [3, 2]
    assert isinstance(encoder.spec, TextSpec)
    assert encoder.spec.spans("w1 " * 30) == [(0, 57), (57, 90)]


def test_pixels_are_those_of_the_models_own_processor(videomae: Path, xclip: Path) -> None:
    """Pillow's resize to the grey level; the processor on torchvision, whose resize differs by rounding, nearly."""
    y, x = np.mgrid[0:90, 0:160]
    frames = [np.stack([(x + 9 * n) % 256, y, (x + y) % 256], -1).astype(np.uint8) for n in range(4)]
    for folder in (videomae, xclip):
        wanted = video_input(folder)
        spec = wanted.spec
        ours = np.stack([fitted(Image.fromarray(frame), (160, 90), spec) for frame in frames]).astype(np.float32)
        ours = (ours * wanted.scale - np.array(wanted.mean)) / np.array(wanted.std)
        theirs = [
            processor(**GEOMETRY, **MOMENTS)([frames], return_tensors="pt")["pixel_values"][0].permute(0, 2, 3, 1)
            for processor in (VideoMAEImageProcessorPil, VideoMAEImageProcessor)
        ]
        np.testing.assert_allclose(ours, theirs[0], atol=1e-5)
        assert np.abs(ours - theirs[1].numpy()).mean() < 1 / 255


def test_from_a_file_to_the_feature(videomae: Path) -> None:
    """The whole way, against transformers on the frames that went into the file."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (9, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(8)]
    data = film(frames, fps=2, format="matroska", codec="ffv1")
    encoder = build(videomae, dtype="fp32")
    (segment,) = decode(data, Modality.VIDEO, encoder.spec, Limits())
    chosen = [frames[number] for number in (1, 3, 5, 7)]  # on show at 0.5, 1.5, 2.5 and 3.5 s
    expected = reference(videomae, [Segment(np.stack(chosen))])
    assert cosines(encoder.encode([segment]), expected).min() > 0.999  # ffv1 keeps half of the colours' places


def test_a_classifiers_checkpoint_serves_without_its_head(videomae: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = VideoMAEConfig(**SMALL, **PIXELS, num_frames=4, tubelet_size=2, num_labels=3)
    classifier = VideoMAEForVideoClassification(config).eval()
    classifier.save_pretrained(tmp_path / "videomae")
    shutil.copy(videomae / "video_preprocessor_config.json", tmp_path / "videomae")
    processor = VideoMAEImageProcessorPil(**GEOMETRY, **MOMENTS)
    pixels = processor([list(np.asarray(videos(1)[0].data))], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = classifier.videomae(pixels).last_hidden_state.mean(1).numpy()
    np.testing.assert_allclose(build(tmp_path / "videomae", dtype="fp32").encode(videos(1)), expected, atol=1e-5)


def test_descriptions(videomae: Path, xclip: Path) -> None:
    config = parse_config({"kind": "video", "model": "m"}, "test")
    for folder in (videomae, xclip):
        pooled = config.describe(LocalModel(folder, "sha256:x"), Modality.VIDEO)
        tokens = config.describe_tokens(LocalModel(folder, "sha256:x"), Modality.VIDEO)
        assert (pooled.dim, pooled.frames, tokens.dim, tokens.mean_pooled) == (32, 4, 32, True)
        assert json.loads(json.dumps(pooled.decides)) == pooled.decides
        assert pooled.decides["preprocess"]["mean"] == MOMENTS["image_mean"]
        assert build(folder).spec == VideoSpec(ImageSpec(32, 32, 32, "crop_down", "bilinear"), VideoSegments(frames=4))
    text = config.describe(LocalModel(xclip, "sha256:x"), Modality.TEXT)
    assert (text.dim, text.decides["max_tokens"], text.frames) == (32, 20, None)


def test_what_it_cannot_serve_is_refused(videomae: Path, tmp_path: Path) -> None:
    config = parse_config({"kind": "video", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes text or video, not image"):
        config.describe(LocalModel(videomae, ""), Modality.IMAGE)
    with pytest.raises(SpaceError, match=r"videomae in .* has no text tower"):
        config.describe(LocalModel(videomae, ""), Modality.TEXT)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(SpaceError, match=r"'clip' in .*: videomae or xclip was expected"):
        config.describe(LocalModel(tmp_path, ""), Modality.VIDEO)
    with pytest.raises(SpaceError, match="3 frames, this encoder takes 4 a video"):
        build(videomae).encode([Segment(np.zeros((3, 32, 32, 3), np.uint8))])


def test_a_space_takes_the_number_of_frames_from_the_model(videomae: Path, xclip: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    model = f"{{kind: video, model: {xclip}}}"
    file.write_text(f"dim: 32\ntext: {{encoder: {model}}}\nvideo: {{encoder: {model}, segments: {{seconds: 5}}}}\n")
    members = resolve(open_space(str(file))).members
    assert members[Modality.VIDEO].segments == VideoSegments(seconds=5, frames=4)
    assert members[Modality.VIDEO].feature_doc["segments"]["frames"] == 4
    assert set(members) == {Modality.TEXT, Modality.VIDEO}
    file.write_text(f"dim: 32\nvideo: {{encoder: {model}, segments: {{frames: 8}}}}\n")
    with pytest.raises(SpaceError, match="the model takes 4 frames, 'segments' says 8; leave 'frames' out"):
        resolve(open_space(str(file)))
