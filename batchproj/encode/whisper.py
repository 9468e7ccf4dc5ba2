"""Sound -> one vector per piece: the encoder half of Whisper, from CTranslate2 or transformers folders.

Source: Radford et al. 2022 (Whisper), arXiv:2212.04356. The model was trained on 30 s windows; on
clips of a few seconds `window: real` runs it on the clip's own length, 20 to 50 times cheaper. Its
frames are near those of the padded window (cosine 0.95), not the same: it is its own preprocessing.
B rows, M mels, F mel frames (10 ms), T = F / 2 encoder frames, D = width * slices (* 2 with std).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from batchproj.ctranslate2_file import tensor_shapes
from batchproj.encode import Description, EncoderConfig, Features
from batchproj.errors import SpaceError
from batchproj.log_mel import HOP, SAMPLE_RATE, WINDOW_FRAMES, WINDOW_S, WINDOW_SAMPLES, LogMel, padded_samples
from batchproj.media import AudioSpec, Segment, Spec
from batchproj.model_folder import complete_config, other_kind, read_config
from batchproj.schema import Modality
from batchproj.weights import LocalModel

Pooling = Literal["mean", "mean_std"]
if TYPE_CHECKING:
    import torch

    from batchproj.accelerator import Coming
    from batchproj.torch_runtime import Batches

Array = npt.NDArray[np.float32]
Frames = Callable[["torch.Tensor"], "torch.Tensor"]
"""(B, M, F) log-mel, where the model is -> (B, T, width), both float32."""

_FRAMES_STEP = 50
"""Clips are filled up to the next half second: few batch shapes, little padding."""


class _Sizes(NamedTuple):
    width: int
    mels: int


class _Clip(NamedTuple):
    """A clip's samples (N,), how many mel frames it is given, and how many encoder frames of it are real sound."""

    samples: Array
    frames: int
    heard: int


class Config(EncoderConfig):
    """Whisper's encoder, pooled over the frames of the real sound.

    `slices` cuts the clip into that many equal stretches of time and concatenates their vectors,
    so that the order of sounds is kept. dtype is fp32 as CTranslate2 has no bf16 on most CPUs.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.AUDIO})

    dtype: Literal["bf16", "fp32"] = "fp32"
    window: Literal["real", "padded"] = "real"
    pooling: Pooling = "mean"
    slices: int = Field(default=1, ge=1, le=64)

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a feature; reads the head of `model.bin`, or config.json."""
        frames = self.describe_tokens(model, modality)
        pooling = {"pooling": self.pooling, "slices": self.slices}
        return Description(self._dim(frames.dim), {**frames.decides, **pooling}, longest=WINDOW_S)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the encoder's frames, 20 ms each."""
        self.require(modality)
        sizes = _sizes(model.path)
        self._check_dtype(model.path)
        decides = {
            "kind": self.kind,
            "weights": model.digest,
            "mels": sizes.mels,
            "window": self.window,
            "frames_step": _FRAMES_STEP if self.window == "real" else WINDOW_FRAMES,
            "dtype": self.dtype,
        }
        return Description(sizes.width, decides, longest=WINDOW_S)

    def build(self, model: LocalModel, modality: Modality, threads: int) -> WhisperEncoder:
        """Load the encoder (CTranslate2 loads the decoder beside it)."""
        from batchproj import torch_runtime
        from batchproj.accelerator import device

        self.require(modality)
        self._check_dtype(model.path)
        torch_runtime.use_threads(threads)
        sizes = _sizes(model.path)
        if _is_ctranslate2(model.path):
            frames, log_mel = _ctranslate2_frames(model.path, threads), LogMel(sizes.mels)
        else:
            frames, log_mel = _transformers_frames(model.path, self.dtype), LogMel(sizes.mels, device())
        return WhisperEncoder(frames, log_mel, self, self._dim(sizes.width), torch_runtime.torch_dtype(self.dtype))

    def _dim(self, width: int) -> int:
        return width * self.slices * (2 if self.pooling == "mean_std" else 1)

    def _check_dtype(self, folder: Path) -> None:
        if self.dtype == "bf16" and _is_ctranslate2(folder):
            raise SpaceError(f"{folder} is a CTranslate2 model: dtype bf16 is not supported for it, set dtype: fp32")


class WhisperEncoder:
    """A loaded Whisper encoder."""

    def __init__(self, frames: Frames, log_mel: LogMel, config: Config, dim: int, dtype: torch.dtype) -> None:
        from batchproj.accelerator import Replayed
        from batchproj.torch_runtime import batches

        self._frames, self._log_mel, self._config, self._dim = frames, log_mel, config, dim
        self._pooled_there = Replayed(lambda mel, weights: pool_weighted(frames(mel), weights, config.pooling))
        self._pooled: Batches[_Clip] = batches(self._forward_pooled, dtype)
        self._heard: Batches[_Clip] = batches(self._forward, dtype)
        self.spec: Spec = AudioSpec(SAMPLE_RATE, WINDOW_S)

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Sounds (N,) at 16 kHz, up to 30 s each -> (B, D) float32."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        return np.stack(self._run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Features]:
        """Sounds as in `encode` -> the frames of the real sound, (T, D) float32 each."""
        return self._run(self._heard, segments)

    def _run(self, sounds: Batches[_Clip], segments: Sequence[Segment]) -> list[Features]:
        from batchproj.torch_runtime import forward_frames

        clips = [self._clip(np.asarray(segment.data, np.float32)) for segment in segments]
        return sounds.run(clips, lambda clip: clip.frames, lambda clip: max(1, forward_frames() // clip.frames))

    def _clip(self, samples: Array) -> _Clip:
        if len(samples) > WINDOW_SAMPLES:
            seconds = len(samples) / SAMPLE_RATE
            raise SpaceError(f"a sound of {seconds:.1f} s, at most 30 s expected: decode with the encoder's own spec")
        real = max(1, -(-len(samples) // HOP))
        length = WINDOW_FRAMES if self._config.window == "padded" else -(-real // _FRAMES_STEP) * _FRAMES_STEP
        return _Clip(samples, length, -(-real // 2))

    def _mels(self, clips: Sequence[_Clip]) -> torch.Tensor:
        """Log-mels (B, M, F) of clips that are given equally many frames."""
        import torch

        from batchproj.accelerator import filled

        frames = clips[0].frames
        if self._log_mel.device.type == "cpu":
            return torch.stack([self._log_mel.tensor(clip.samples, frames) for clip in clips])
        samples_BN = filled([clip.samples for clip in clips], padded_samples(frames))
        return self._log_mel.together(samples_BN, frames)

    def _forward_pooled(self, clips: Sequence[_Clip]) -> Features | Coming:
        import torch

        from batchproj.accelerator import to_device
        from batchproj.torch_runtime import to_host

        if self._log_mel.device.type == "cpu":
            return np.stack([pool(heard, self._config.pooling, self._config.slices) for heard in self._forward(clips)])
        weights_BST = stretches([clip.heard for clip in clips], clips[0].frames // 2, self._config.slices)
        with torch.inference_mode():
            return to_host(self._pooled_there(self._mels(clips), to_device(weights_BST)))

    def _forward(self, clips: Sequence[_Clip]) -> list[Features]:
        import torch

        from batchproj.torch_runtime import to_numpy

        with torch.inference_mode():
            frames_BTD = to_numpy(self._frames(self._mels(clips)))
        return [frames_TD[: clip.heard] for frames_TD, clip in zip(frames_BTD, clips, strict=True)]


def pool(frames_TD: Array, pooling: Pooling, slices: int) -> Array:
    """Mean, or mean then standard deviation, of each of `slices` equal stretches, end to end.

    A clip of fewer frames than slices repeats frames.
    """
    count = len(frames_TD)
    parts: list[Array] = []
    for index in range(slices):
        start = index * count // slices
        stretch = frames_TD[start : max(start + 1, (index + 1) * count // slices)]
        parts.append(stretch.mean(0, dtype=np.float32))
        if pooling == "mean_std":
            parts.append(stretch.std(0, dtype=np.float32))
    return np.concatenate(parts)


def stretches(heard: Sequence[int], frames: int, slices: int) -> Array:
    """What each of so many `frames` counts for in the mean of each stretch of a clip that `pool` makes, (B, S, T)."""
    weights_BST = np.zeros((len(heard), slices, frames), np.float32)
    for row_ST, count in zip(weights_BST, heard, strict=True):
        for index in range(slices):
            start = index * count // slices
            stop = max(start + 1, (index + 1) * count // slices)
            row_ST[index, start:stop] = 1 / (stop - start)
    return weights_BST


def pool_weighted(frames_BTD: torch.Tensor, weights_BST: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """What `pool` gives for each clip, (B, D), of all clips at once."""
    import torch

    mean_BSD = torch.bmm(weights_BST, frames_BTD)
    if pooling == "mean":
        return mean_BSD.flatten(1)
    # about the clip's own mean, for squares of values far from zero would lose their low bits
    centre_B1D = mean_BSD.mean(1, keepdim=True)
    off_BTD, off_BSD = frames_BTD - centre_B1D, mean_BSD - centre_B1D
    variance_BSD = torch.bmm(weights_BST, off_BTD.square()) - off_BSD.square()
    return torch.stack([mean_BSD, variance_BSD.clamp(min=0).sqrt()], 2).flatten(1)


def _is_ctranslate2(folder: Path) -> bool:
    return (folder / "model.bin").is_file() and not any(folder.glob("*.safetensors"))


def _sizes(folder: Path) -> _Sizes:
    if _is_ctranslate2(folder):
        name, shapes = tensor_shapes(folder / "model.bin")
        if name != "WhisperSpec":
            raise SpaceError(f"{folder}/model.bin is a {name}, a WhisperSpec was expected")
        width, mels, _ = shapes["encoder/conv1/weight"]
        return _Sizes(width, mels)
    if (found := read_config(folder).get("model_type")) != "whisper":
        raise SpaceError(
            f"'{found}' in {folder} is not a Whisper model: {other_kind(found, 'kind whisper takes no other')}"
        )
    config = complete_config(folder)
    return _Sizes(int(config.d_model), int(config.num_mel_bins))


def _ctranslate2_model(folder: Path, threads: int) -> Any:
    """On the accelerator where CTranslate2 can use it, tried on a moment of silence, else on CPUs.

    It needs CUDA libraries of its own major version, and torch may have come with those of another.
    """
    import ctranslate2

    from batchproj.accelerator import is_apart

    options = {"compute_type": "float32", "intra_threads": 1}
    if is_apart():
        silence = np.zeros((1, _sizes(folder).mels, _FRAMES_STEP), np.float32)
        try:
            model = ctranslate2.models.Whisper(str(folder), device="cuda", **options)
            model.encode(ctranslate2.StorageView.from_array(silence), to_cpu=True)
        except (RuntimeError, ValueError):  # no library or driver that fits; made without CUDA
            pass
        else:
            return model
    return ctranslate2.models.Whisper(str(folder), device="cpu", inter_threads=threads, **options)  # a core each lane


def _ctranslate2_frames(folder: Path, threads: int) -> Frames:
    import ctranslate2
    import torch

    model = _ctranslate2_model(folder, threads)

    def frames(mel_BMF: torch.Tensor) -> torch.Tensor:
        output = model.encode(ctranslate2.StorageView.from_array(mel_BMF.numpy()), to_cpu=True)
        return torch.from_numpy(np.array(output, dtype=np.float32))

    return frames


def _transformers_frames(folder: Path, dtype: Literal["bf16", "fp32"]) -> Frames:
    import torch
    from transformers import WhisperModel

    from batchproj import torch_runtime

    encoder = torch_runtime.load_pretrained(WhisperModel, folder, dtype).get_encoder()
    positions = encoder.embed_positions.weight

    @cache
    def of_length(count: int) -> Any:
        """The encoder, its weights shared, told that so many frames are its window: transformers takes no fewer."""
        shorter = copy.copy(encoder)
        shorter._modules = dict(encoder._modules)
        shorter.config = copy.copy(encoder.config)
        shorter.embed_positions = torch.nn.Embedding(count, positions.shape[1], _weight=positions[:count])
        shorter.config.max_source_positions = count
        return shorter

    def frames(mel_BMF: torch.Tensor) -> torch.Tensor:
        states_BTD: torch.Tensor = of_length(mel_BMF.shape[2] // 2)(mel_BMF.to(positions.dtype)).last_hidden_state
        return states_BTD.float()

    return frames
