"""AST, wav2vec 2.0, HuBERT and WavLM: parity with transformers' own extractors and models, exact rows, windows."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from exact_rows import assert_rows_are_their_own
from safetensors.torch import load_file, save_file
from tiny_sound import RATE, STEM, WAVES, save_ast, save_wave
from transformers import ASTFeatureExtractor, AutoFeatureExtractor, AutoModel

from batchproj.decode.audio import stream_audio
from batchproj.decode.limits import Limits
from batchproj.encode import Description, Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.kaldi_fbank import KaldiFbank, fbank_input
from batchproj.media import AudioSpec, Segment
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

pytestmark = [  # of the reference: AST's extractor, and WavLM's attention with a mask
    pytest.mark.filterwarnings("ignore:At least one mel filter"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]
Array = npt.NDArray[np.float32]
SECONDS = [0.75, 0.31, 1.0, 0.5, 0.3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("audio")
    return {"ast": save_ast(home / "ast"), **{name: save_wave(home / name, name) for name in WAVES}}


def build(folder: Path, **fields: Any) -> Encoder:
    config = parse_config({"kind": "audio", "model": str(folder), **fields}, "test")
    return config.build(resolve(str(folder), None, None), Modality.AUDIO, 1)


def described(folder: Path, tokens: bool = False, **fields: Any) -> Description:
    config = parse_config({"kind": "audio", "model": "m", **fields}, "test")
    model = LocalModel(folder, "sha256:x")
    return config.describe_tokens(model, Modality.AUDIO) if tokens else config.describe(model, Modality.AUDIO)


def sounds(*seconds: float) -> list[Segment]:
    """Gliding tones with pauses and a little noise, of different loudness."""
    found = []
    for seed, length in enumerate(seconds):
        rng = np.random.default_rng(seed)
        t = np.arange(round(length * RATE)) / RATE
        tone = np.sin(2 * np.pi * (rng.uniform(150, 900) * t + 200 * np.sin(t * rng.uniform(1, 4))))
        samples = 0.4 / (seed % 5 + 1) * tone * (np.sin(t * 19 + seed) > -0.3) + rng.normal(0, 0.01, len(t))
        found.append(Segment(samples.astype(np.float32)))
    return found


def cosines(left: Array, right: Array) -> Array:
    found: Array = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return found


def by_transformers(folder: Path, segments: list[Segment], **options: Any) -> Any:
    """The outputs of one batch, by transformers' own extractor and model in float32."""
    extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    samples = [np.asarray(segment.data) for segment in segments]
    inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", **options)
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder, local_files_only=True).eval()(**inputs)


def frames(samples: int) -> int:
    for kernel, stride in zip(STEM["conv_kernel"], STEM["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def test_ast_gives_its_pooler_output(folders: dict[str, Path]) -> None:
    segments = sounds(*SECONDS, 1.28, 0.02)[:-1]
    expected = by_transformers(folders["ast"], segments).pooler_output.numpy()
    features = build(folders["ast"], dtype="fp32").encode(segments)
    assert (features.shape, features.dtype) == ((6, 32), np.float32)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert cosines(features, expected).min() >= 0.9999
    assert cosines(build(folders["ast"]).encode(segments), expected).min() >= 0.999


def test_ast_s_tokens_are_the_patches_of_the_sound_time_by_time(folders: dict[str, Path]) -> None:
    segments = sounds(1.28, 0.3)
    states = by_transformers(folders["ast"], segments).last_hidden_state[:, 2:].numpy()
    by_time = states.reshape(2, 2, 12, 32).swapaxes(1, 2)  # 2 bands of 12 patches
    whole, short = build(folders["ast"], dtype="fp32").encode_tokens(segments)
    np.testing.assert_allclose(whole, by_time[0].reshape(24, 32), atol=1e-5)
    np.testing.assert_allclose(short, by_time[1, :3].reshape(6, 32), atol=1e-5)  # 28 frames, a patch every 10


@pytest.mark.parametrize("is_normal", [True, False])
def test_spectrograms_are_the_feature_extractor_s(tmp_path: Path, is_normal: bool) -> None:
    """At the size of the checkpoint trained on AudioSet; 10.24 s of sound make two frames less than the window."""
    extractor = ASTFeatureExtractor(do_normalize=is_normal)
    extractor.save_pretrained(tmp_path)
    fbank = KaldiFbank(fbank_input(tmp_path))
    for segment, heard in zip(sounds(10.24, 3.7, 11, 0.025), [1022, 368, 1024, 1], strict=True):
        samples = np.asarray(segment.data)
        expected = extractor(samples, sampling_rate=RATE)["input_values"][0]
        found = fbank(samples)
        assert (found.shape, found.dtype, fbank.heard(samples)) == ((1024, 128), np.float32, heard)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.isfinite(fbank(samples[:10])).all()


@pytest.mark.parametrize("name", WAVES)
def test_each_sound_alone_has_the_mean_of_its_frames(folders: dict[str, Path], name: str) -> None:
    """One by one and without padding, as any of these models can be run."""
    segments = sounds(*SECONDS)
    states = [by_transformers(folders[name], [each]).last_hidden_state[0].numpy() for each in segments]
    expected = np.stack([each.mean(0) for each in states])
    encoder = build(folders[name], dtype="fp32")
    features = encoder.encode(segments)
    assert (features.shape, features.dtype) == ((5, 32), np.float32)
    assert cosines(features, expected).min() >= 0.9999
    np.testing.assert_allclose(features, expected, atol=2e-5)
    for tokens, own in zip(encoder.encode_tokens(segments), states, strict=True):
        np.testing.assert_allclose(tokens, own, atol=5e-5)
    half = build(folders[name]).encode(segments)
    assert cosines(half, expected).min() >= 0.999


@pytest.mark.parametrize("name", [name for name in WAVES if name.endswith("layer")])
def test_a_padded_batch_with_its_mask_gives_the_same(folders: dict[str, Path], name: str) -> None:
    segments = sounds(*SECONDS)
    states = by_transformers(folders[name], segments, padding=True).last_hidden_state.numpy()
    lengths = [frames(len(segment.data)) for segment in segments]
    expected = np.stack([own[:length].mean(0) for own, length in zip(states, lengths, strict=True)])
    assert cosines(build(folders[name], dtype="fp32").encode(segments), expected).min() >= 0.9999
    assert cosines(build(folders[name]).encode(segments), expected).min() >= 0.999


def test_of_group_norm_padding_would_show(folders: dict[str, Path]) -> None:
    """Why sounds of such a model are never padded, though it was trained so."""
    segments = sounds(1.0, 0.3)
    padded = by_transformers(folders["wav2vec2-group"], segments, padding=True).last_hidden_state[1].numpy()
    (tokens,) = build(folders["wav2vec2-group"], dtype="fp32").encode_tokens(segments[1:])
    assert np.abs(padded[: len(tokens)] - tokens).max() > 1e-2


@pytest.mark.parametrize("name", ["ast", *WAVES])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_row_never_shows_its_neighbours(folders: dict[str, Path], name: str, dtype: str) -> None:
    lengths = [[0.3, 0.5, 0.31, 0.02, 0.3][number % 5] + (number % 3) * 0.1 for number in range(20)]
    assert_rows_are_their_own(build(folders[name], dtype=dtype), sounds(*lengths))


@pytest.mark.parametrize("name", ["ast", "wav2vec2-group", "hubert-layer"])
def test_silence_and_a_few_samples_have_a_vector(folders: dict[str, Path], name: str) -> None:
    """Less than one frame is filled up to one."""
    short = [Segment(np.zeros(8_000, np.float32)), Segment(np.full(7, 0.1, np.float32))]
    encoder = build(folders[name])
    assert np.isfinite(encoder.encode(short)).all()
    assert len(encoder.encode_tokens(short)[1]) == (2 if name == "ast" else 1)


def test_nothing_in_nothing_out(folders: dict[str, Path]) -> None:
    for name in ("ast", "wavlm-group"):
        assert build(folders[name]).encode([]).shape == (0, 32)
        assert build(folders[name]).encode_tokens([]) == []


def test_windows(folders: dict[str, Path]) -> None:
    assert build(folders["ast"]).spec == AudioSpec(RATE, 1.28)
    assert build(folders["ast"], window_s=1).spec == AudioSpec(RATE, 1)
    assert build(folders["wavlm-layer"]).spec == AudioSpec(RATE, 30)
    assert build(folders["wavlm-layer"], window_s=12.5).spec == AudioSpec(RATE, 12.5)
    with pytest.raises(SpaceError, match=r"window_s is 2\.0, this model takes at most 1\.28 s"):
        described(folders["ast"], window_s=2)
    with pytest.raises(SpaceError, match=r"a sound of 2\.0 s, at most 1\.28 s expected"):
        build(folders["ast"]).encode(sounds(2.0))


@pytest.mark.parametrize("name", ["ast", "hubert-group"])
def test_a_file_is_cut_into_windows_of_the_spec(folders: dict[str, Path], name: str) -> None:
    encoder = build(folders[name], window_s=1.2)
    assert isinstance(encoder.spec, AudioSpec)
    file = io.BytesIO()
    soundfile.write(file, np.asarray(sounds(3.0)[0].data), 22_050, format="WAV")
    pieces = list(stream_audio(file.getvalue(), encoder.spec, Limits()))
    assert [len(piece.data) for piece in pieces] == [19_200, round(3 * RATE * RATE / 22_050) - 19_200]
    assert encoder.encode(pieces).shape == (2, 32)


def test_descriptions(folders: dict[str, Path]) -> None:
    ast, layer, group = (described(folders[name]) for name in ("ast", "wav2vec2-layer", "hubert-group"))
    assert (ast.dim, ast.decides["pooling"], ast.mean_pooled) == (32, "pooler", False)
    assert layer.decides == {
        "kind": "audio",
        "weights": "sha256:x",
        "preprocess": {"sample_rate": RATE, "normalize": True, "masked": True, "step_s": 0.5},
        "window_s": 30.0,
        "dtype": "bf16",
        "pooling": "mean",
    }
    assert group.decides["preprocess"] == {"sample_rate": RATE, "normalize": False, "masked": False, "step_s": None}
    assert ast.decides["preprocess"]["frames"] == 128
    assert json.loads(json.dumps(ast.decides)) == ast.decides
    assert described(folders["wavlm-layer"], tokens=True).mean_pooled
    assert not described(folders["ast"], tokens=True).mean_pooled


@pytest.mark.parametrize("old", [True, False])
def test_weights_of_the_published_files_load(folders: dict[str, Path], tmp_path: Path, old: bool) -> None:
    """They may lack the vector for masked frames, and call the parts of the positions' weight as torch once did."""
    folder = tmp_path / "model"
    shutil.copytree(folders["wav2vec2-layer"], folder)
    stored = {name: value for name, value in load_file(folder / "model.safetensors").items() if "masked" not in name}
    new = "parametrizations.weight.original"
    renamed = {name.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v"): stored[name] for name in stored}
    save_file(renamed if old else stored, folder / "model.safetensors", metadata={"format": "pt"})
    features = [build(each, dtype="fp32").encode(sounds(0.4)) for each in (folder, folders["wav2vec2-layer"])]
    np.testing.assert_array_equal(*features)


def _rewrite(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_it_cannot_serve_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    config = parse_config({"kind": "audio", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes audio, not text: choose another kind"):
        config.describe(LocalModel(folders["ast"], ""), Modality.TEXT)
    for name, way in (("clap", "use kind: clap"), ("whisper", "use kind: whisper"), ("sew", "hubert, .* was expected")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(SpaceError, match=rf"'{name}' .* is no sound model of kind audio: .*{way}"):
            described(tmp_path)
    for name in ("ast", "hubert-layer"):
        bare = tmp_path / name
        shutil.copytree(folders[name], bare, ignore=shutil.ignore_patterns("preprocessor_config.json"))
        with pytest.raises(SpaceError, match=r"no preprocessor_config\.json in"):
            described(bare)
    other = tmp_path / "other"
    shutil.copytree(folders["ast"], other)
    _rewrite(other / "preprocessor_config.json", max_length=1024)
    with pytest.raises(SpaceError, match="make 1024 frames of 32 mels, its model takes 128 of 32"):
        described(other)
    adapter = tmp_path / "adapter"
    shutil.copytree(folders["wav2vec2-group"], adapter)
    _rewrite(adapter / "config.json", add_adapter=True)
    with pytest.raises(SpaceError, match="ends in an adapter for a decoder"):
        described(adapter)
    _rewrite(adapter / "preprocessor_config.json", sampling_rate="fast")
    _rewrite(adapter / "config.json", add_adapter=False)
    with pytest.raises(SpaceError, match="sound settings without a usable"):
        described(adapter)
