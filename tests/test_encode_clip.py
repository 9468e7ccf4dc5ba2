"""CLIP and SigLIP towers: parity with the whole model, exact rows, geometry from the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pictures import TEXT, VISION, WORDS, save_clip, save_processor, save_siglip
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from batchproj.encode import Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.lanes import open_lanes
from batchproj.media import ImageSpec, Segment, TextSpec
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

TEXTS = ["w1 w2", "w3", " ".join(WORDS), "w5 w6 w7 w8 w9 w1 w2", "w2 " * 50]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


def build(folder: Path, modality: Modality, **fields: Any) -> Encoder:
    config = parse_config({"kind": "clip", "model": str(folder), **fields}, "test")
    return config.build(resolve(str(folder), None, None), modality, 1)


def images(count: int) -> list[Segment]:
    rng = np.random.default_rng(7)
    return [Segment(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def texts(count: int) -> list[Segment]:
    return [Segment(TEXTS[index % len(TEXTS)] + f" w{index % 9}" * (index % 4)) for index in range(count)]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_images_agree_with_the_whole_model(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    segments = images(5)
    mean, std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    pixels = (np.stack([np.asarray(s.data) for s in segments]).astype(np.float32) / 255 - mean) / std
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        output = model.get_image_features(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2))
    features = build(folder, Modality.IMAGE, dtype="fp32").encode(segments)
    np.testing.assert_allclose(features, output.pooler_output.numpy(), atol=1e-5)


def test_clip_texts_agree_with_the_whole_model(clip: Path) -> None:
    model = AutoModel.from_pretrained(clip, local_files_only=True).eval()
    features = build(clip, Modality.TEXT, dtype="fp32").encode([Segment(text) for text in TEXTS])
    ids = {"w1 w2": [1, 2, 14], TEXTS[2]: [*range(14), 14], "w2 " * 50: [2] * 19 + [14]}
    for text, row in ids.items():
        with torch.inference_mode():
            expected = model.get_text_features(input_ids=torch.tensor([row])).pooler_output[0].numpy()
        np.testing.assert_allclose(features[TEXTS.index(text)], expected, atol=1e-5)


def test_siglip_texts_are_filled_up_to_the_limit(siglip: Path) -> None:
    model = AutoModel.from_pretrained(siglip, local_files_only=True).eval()
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=torch.tensor([[1, 2, 14] + [15] * 17])).pooler_output.numpy()
    features = build(siglip, Modality.TEXT, dtype="fp32").encode([Segment("w1 w2")])
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.TEXT])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_row_never_shows_its_neighbours(
    family: str, modality: Modality, dtype: str, request: pytest.FixtureRequest
) -> None:
    encoder = build(request.getfixturevalue(family), modality, dtype=dtype)
    segments = images(19) if modality is Modality.IMAGE else texts(40)
    whole = encoder.encode(segments)
    order = np.random.default_rng(0).permutation(len(segments))
    np.testing.assert_array_equal(encoder.encode([segments[i] for i in order]), whole[order])
    for chosen in ([0], [5], [1, 2], [3, 4, 5], list(range(2, 12))):
        np.testing.assert_array_equal(encoder.encode([segments[i] for i in chosen]), whole[chosen])


def test_specs_come_from_the_folder(clip: Path, siglip: Path) -> None:
    assert build(clip, Modality.IMAGE).spec == ImageSpec(32, 32, 36, "crop_down", "bicubic")
    assert build(siglip, Modality.IMAGE).spec == ImageSpec(32, 32, 32, "squash", "bicubic")
    spec = build(clip, Modality.TEXT).spec
    assert isinstance(spec, TextSpec)
    assert spec.spans("w1 " * 30) == [(0, 57), (57, 90)]  # 19 words and the end mark


def test_description_of_each_tower(clip: Path, siglip: Path) -> None:
    config = parse_config({"kind": "clip", "model": "m"}, "test")
    image = config.describe(LocalModel(clip, "sha256:x"), Modality.IMAGE)
    text = config.describe(LocalModel(clip, "sha256:x"), Modality.TEXT)
    assert (image.dim, text.dim) == (24, 24)
    assert image.decides["preprocess"]["spec"]["resize_px"] == 36
    assert text.decides["max_tokens"] == 20
    assert config.describe(LocalModel(siglip, ""), Modality.TEXT).dim == 32
    assert json.loads(json.dumps(image.decides)) == image.decides


def test_what_it_cannot_serve_is_refused(clip: Path, tmp_path: Path) -> None:
    config = parse_config({"kind": "clip", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes image or text or video, not audio"):
        config.describe(LocalModel(clip, ""), Modality.AUDIO)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SpaceError, match=r"'bert' .* clip or siglip was expected"):
        config.describe(LocalModel(tmp_path, ""), Modality.TEXT)
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(SpaceError, match=r"'siglip2' .* \(NaFlex\); take a SigLIP 2 of fixed resolution"):
        config.describe(LocalModel(tmp_path, ""), Modality.IMAGE)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(SpaceError, match=r"'dinov2' .* use kind: vision"):
        config.describe(LocalModel(tmp_path, ""), Modality.IMAGE)
    mute = tmp_path / "mute"
    shutil.copytree(clip, mute, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(SpaceError, match=r"no tokenizer in .*mute"):
        config.describe(LocalModel(mute, ""), Modality.TEXT)
    assert config.describe(LocalModel(mute, ""), Modality.IMAGE).dim == 24
    bare = tmp_path / "bare"
    shutil.copytree(clip, bare, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(SpaceError, match=r"no preprocessor_config\.json"):
        config.describe(LocalModel(bare, ""), Modality.IMAGE)


def save_gemma_tokenizer(folder: Path) -> None:
    """As in the fixed-resolution checkpoints of SigLIP 2: characters and a few merges, an end mark, no lower case."""
    letters = {letter: number for number, letter in enumerate("▁abcdeghost", start=4)}
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, **letters}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[], fuse_unk=True, unk_token="<unk>"))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    fields = {"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **fields}))


def test_siglip_2_of_fixed_resolution(tmp_path: Path) -> None:
    """Of model_type siglip, with Gemma's tokenizer; its texts were in lower case when it was trained."""
    torch.manual_seed(0)
    text = SiglipTextConfig(**{**TEXT, "vocab_size": 20}, max_position_embeddings=64, pad_token_id=0)
    vision = SiglipVisionConfig(**VISION, image_size=32, patch_size=8)
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(tmp_path)
    save_processor(tmp_path, size={"height": 32, "width": 32})
    save_gemma_tokenizer(tmp_path)
    whole = AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert type(tokenizer).__name__ == "GemmaTokenizer"
    rows = ["a cat", "the dogs chase a toad", "a goat " * 30]
    inputs = tokenizer(rows, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
    assert inputs.shape == (3, 64)
    with torch.inference_mode():
        expected = whole.get_text_features(input_ids=inputs).pooler_output.numpy()
    for dtype, least in (("fp32", 0.9999), ("bf16", 0.999)):
        encoder = build(tmp_path, Modality.TEXT, dtype=dtype)
        features = encoder.encode([Segment(row) for row in rows])
        cosines = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() >= least
        np.testing.assert_array_equal(encoder.encode([Segment("A Cat")])[0], features[0])
    config = parse_config({"kind": "clip", "model": "m"}, "test")
    text_doc = config.describe(LocalModel(tmp_path, ""), Modality.TEXT).decides
    assert (text_doc["max_tokens"], text_doc["lowercase"]) == (64, True)
    assert "lowercase" not in config.describe(LocalModel(tmp_path, ""), Modality.IMAGE).decides


def test_nothing_in_nothing_out(clip: Path) -> None:
    assert build(clip, Modality.IMAGE).encode([]).shape == (0, 24)
    assert build(clip, Modality.TEXT).encode([]).shape == (0, 24)


def test_an_image_of_another_size_is_refused(clip: Path) -> None:
    with pytest.raises(SpaceError, match=r"\(8, 8, 3\) uint8, this encoder takes \(32, 32, 3\)"):
        build(clip, Modality.IMAGE).encode([Segment(np.zeros((8, 8, 3), np.uint8))])


def test_bits_do_not_depend_on_how_many_batches_run_side_by_side(tmp_path: Path) -> None:
    """A full batch alone and among others: by all cores or by one, a product in fp32 adds in another order."""
    torch.manual_seed(0)
    save_clip(tmp_path)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "max_position_embeddings": 40}
    marks = {"eos_token_id": 14, "bos_token_id": 0, "pad_token_id": 15}
    vision = {**VISION, "image_size": 32, "patch_size": 8}
    CLIPModel(
        CLIPConfig(text_config={**TEXT, **sizes, **marks}, vision_config=vision, projection_dim=512)
    ).save_pretrained(tmp_path)
    made = parse_config({"kind": "clip", "model": str(tmp_path), "dtype": "fp32"}, "test")
    encoder = made.build(resolve(str(tmp_path), None, None), Modality.TEXT, 2)
    try:
        words = [Segment(" ".join(f"w{(number + each) % 9}" for each in range(30))) for number in range(12)]
        together = encoder.encode(words)
        np.testing.assert_array_equal(encoder.encode(words[:6]), together[:6])
        np.testing.assert_array_equal(encoder.encode(words[:1]), together[:1])
    finally:
        open_lanes(1)
        torch.set_num_threads(1)
