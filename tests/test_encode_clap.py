"""CLAP's towers: parity with transformers' own processor and model, exact rows, windows, settings of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import WORDS
from exact_rows import assert_rows_are_their_own
from safetensors.torch import load_file, save_file
from tiny_text import save_clap, save_sound_settings
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, ClapProcessor

from batchproj.clap_mel import ClapMel, clap_input
from batchproj.decode.audio import stream_audio
from batchproj.decode.limits import Limits
from batchproj.encode import Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.media import AudioSpec, Segment, TextSpec
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

Array = npt.NDArray[np.float32]
RATE = 16_000
TEXTS = ["w1", "w1 w2 w3", " ".join(WORDS), "w4 w5 " * 20, "w7 " * 62]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with feature fusion: other filters, and a branch for sounds beyond the window."""
    folder = save_clap(tmp_path_factory.mktemp("fused"), enable_fusion=True, fusion_type="aff_2d")
    save_sound_settings(folder, truncation="fusion")
    return folder


def build(folder: Path, modality: Modality, **fields: Any) -> Encoder:
    config = parse_config({"kind": "clap", "model": str(folder), **fields}, "test")
    return config.build(resolve(str(folder), None, None), modality, 1)


def sound(seconds: float, seed: int = 0, rate: int = RATE) -> Array:
    """Gliding tones with pauses and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (rng.uniform(150, 900) * t + 200 * np.sin(t * rng.uniform(1, 4))))
    samples: Array = (0.3 * tone * (np.sin(t * 9 + seed) > -0.3) + rng.normal(0, 0.01, len(t))).astype(np.float32)
    return samples


def sounds(*seconds: float) -> list[Segment]:
    return [Segment(sound(length, seed)) for seed, length in enumerate(seconds)]


def cosines(left: Array, right: Array) -> Array:
    found: Array = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return found


def processor(folder: Path) -> ClapProcessor:
    extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return ClapProcessor(extractor, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def model(folder: Path) -> ClapModel:
    return ClapModel.from_pretrained(folder, local_files_only=True).eval()


def test_texts_agree_with_the_whole_model(clap: Path) -> None:
    inputs = processor(clap)(text=TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(clap).get_text_features(**inputs).pooler_output.numpy()
    features = build(clap, Modality.TEXT, dtype="fp32").encode([Segment(text) for text in TEXTS])
    assert features.shape == (len(TEXTS), 24)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert cosines(features, expected).min() >= 0.99999
    assert cosines(build(clap, Modality.TEXT).encode([Segment(text) for text in TEXTS]), features).min() >= 0.999


@pytest.mark.parametrize("folder", ["clap", "fused"])
def test_sounds_agree_with_the_whole_model(folder: str, request: pytest.FixtureRequest) -> None:
    found: Path = request.getfixturevalue(folder)
    segments = sounds(2.0, 0.3, 1.2, 0.01)
    samples = [np.asarray(segment.data) for segment in segments]
    inputs = processor(found)(audio=samples, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        # the extractor calls one sound, drawn at random, longer than the window; none is
        none = torch.zeros_like(inputs["is_longer"])
        expected = model(found).get_audio_features(inputs["input_features"], none).pooler_output.numpy()
    features = build(found, Modality.AUDIO, dtype="fp32").encode(segments)
    assert features.shape == (4, 24)
    assert cosines(features, expected).min() >= 0.99999
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert cosines(build(found, Modality.AUDIO).encode(segments), features).min() >= 0.999


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_spectrograms_are_the_feature_extractors(tmp_path: Path, truncation: str, padding: str) -> None:
    """At the size of LAION's checkpoints: 48 kHz, 10 s, 64 mels."""
    extractor = ClapFeatureExtractor(frequency_min=50, truncation=truncation, padding=padding)
    extractor.save_pretrained(tmp_path)
    wanted = clap_input(tmp_path)
    assert (wanted.window, wanted.frames) == (480_000, 1001)
    for seconds in (10.0, 3.7):
        samples = sound(seconds, rate=48_000)
        expected = extractor(samples, sampling_rate=48_000)["input_features"][0][0]
        ours = ClapMel(wanted)(samples)
        assert (ours.shape, ours.dtype) == ((1001, 64), np.float32)
        np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_row_never_shows_its_neighbours(clap: Path, dtype: str) -> None:
    texts = [*TEXTS, *(f"w{number % 14} w2 " * (number % 23 + 1) for number in range(26))]
    assert_rows_are_their_own(build(clap, Modality.TEXT, dtype=dtype), [Segment(text) for text in texts])
    lengths = np.random.default_rng(0).uniform(0.05, 2, 20)
    assert_rows_are_their_own(build(clap, Modality.AUDIO, dtype=dtype), sounds(*lengths))


def test_tokens_are_states_of_words_and_places_of_a_map(clap: Path) -> None:
    config = parse_config({"kind": "clap", "model": "m"}, "test")
    for modality in (Modality.TEXT, Modality.AUDIO):
        tokens = config.describe_tokens(LocalModel(clap, ""), modality)
        assert (tokens.dim, tokens.mean_pooled) == (32, False)
    words = build(clap, Modality.TEXT, dtype="fp32").encode_tokens([Segment("w1"), Segment("w1 w2 w3")])
    assert [each.shape for each in words] == [(3, 32), (5, 32)]
    segments = sounds(2.0, 0.4)
    inputs = processor(clap)(
        audio=[np.asarray(each.data) for each in segments], sampling_rate=RATE, return_tensors="pt"
    )
    with torch.inference_mode():
        whole = model(clap).audio_model(inputs["input_features"]).pooler_output.numpy()
    places = build(clap, Modality.AUDIO, dtype="fp32").encode_tokens(segments)
    assert [each.shape for each in places] == [(64, 32)] * 2
    np.testing.assert_allclose(np.stack([each.mean(0) for each in places]), whole, atol=1e-4)


def test_long_texts_and_long_sounds_are_cut(clap: Path, tmp_path: Path) -> None:
    spec = build(clap, Modality.TEXT).spec
    assert isinstance(spec, TextSpec)
    assert spec.spans("w1 " * 70) == [(0, 186), (186, 210)]  # 64 tokens, of which two are marks
    heard = build(clap, Modality.AUDIO).spec
    assert heard == AudioSpec(RATE, 2.0)
    import soundfile

    soundfile.write(tmp_path / "long.wav", sound(5.0, rate=44_100), 44_100)  # another rate than the model's
    segments = list(stream_audio((tmp_path / "long.wav").read_bytes(), heard, Limits()))
    assert [(each.start, each.end) for each in segments] == [(0, 2), (2, 4), (4, 5)]
    assert build(clap, Modality.AUDIO).encode(segments).shape == (3, 24)
    with pytest.raises(SpaceError, match=r"a sound of 5\.0 s, at most 2 s expected"):
        build(clap, Modality.AUDIO).encode(sounds(5.0))


def test_nothing_in_nothing_out(clap: Path) -> None:
    assert build(clap, Modality.TEXT).encode([]).shape == (0, 24)
    assert build(clap, Modality.AUDIO).encode([]).shape == (0, 24)


def test_description_of_each_tower(clap: Path, fused: Path) -> None:
    config = parse_config({"kind": "clap", "model": "m"}, "test")
    heard = config.describe(LocalModel(clap, "sha256:x"), Modality.AUDIO)
    read = config.describe(LocalModel(clap, "sha256:x"), Modality.TEXT)
    assert (heard.dim, read.dim) == (24, 24)
    assert (heard.decides["tower"], heard.decides["weights"], heard.decides["dtype"]) == ("audio", "sha256:x", "bf16")
    assert heard.decides["preprocess"]["padding"] == "repeatpad"
    assert (read.decides["tower"], read.decides["max_tokens"]) == ("text", 64)
    assert json.loads(json.dumps(heard.decides)) == heard.decides
    other = config.describe(LocalModel(fused, "sha256:x"), Modality.AUDIO)
    assert other.decides["preprocess"] == {**heard.decides["preprocess"], "filters": "htk"}


def test_weights_decide_the_fingerprint_and_buffers_may_be_missing(clap: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(clap, folder)
    stored = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in stored.items() if not name.endswith(("position_ids", "token_type_ids"))}
    assert len(kept) == len(stored) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert resolve(str(folder), None, None).digest != resolve(str(clap), None, None).digest
    segments = [Segment(text) for text in TEXTS]
    features = [build(each, Modality.TEXT).encode(segments) for each in (clap, folder)]
    np.testing.assert_array_equal(*features)


def test_what_it_cannot_serve_is_refused(clap: Path, tmp_path: Path) -> None:
    config = parse_config({"kind": "clap", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes audio or text, not image"):
        config.describe(LocalModel(clap, ""), Modality.IMAGE)
    with pytest.raises(SpaceError, match="use kind: clap"):
        parse_config({"kind": "text", "model": "m"}, "test").describe(LocalModel(clap, ""), Modality.TEXT)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SpaceError, match=r"'bert' .* is not a CLAP model"):
        config.describe(LocalModel(tmp_path, ""), Modality.TEXT)
    folder = tmp_path / "model"
    shutil.copytree(clap, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())

    def refused(**fields: Any) -> None:
        (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **fields}))
        config.describe(LocalModel(folder, ""), Modality.AUDIO)

    with pytest.raises(SpaceError, match="make 301 frames of 16 mels, its model takes 256 of 16"):
        refused(max_length_s=3)
    with pytest.raises(SpaceError, match=r"without a usable padding \(mirror\)"):
        refused(padding="mirror")
    del settings["hop_length"]
    with pytest.raises(SpaceError, match="without a usable 'hop_length'"):
        refused()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SpaceError, match=r"no preprocessor_config\.json"):
        config.describe(LocalModel(folder, ""), Modality.AUDIO)
