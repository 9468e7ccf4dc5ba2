"""Sound -> one vector per piece: AST on spectrograms; wav2vec 2.0, HuBERT and WavLM on samples.

Sources: Gong et al. 2021 (AST), arXiv:2104.01778; Baevski et al. 2020 (wav2vec 2.0), arXiv:2006.11477;
Hsu et al. 2021 (HuBERT), arXiv:2106.07447; Chen et al. 2022 (WavLM), arXiv:2110.13900.
B rows, N samples, F mel frames, M mels, T tokens (patches, or frames of 20 ms), D encoder dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from batchproj.encode import Description, EncoderConfig, Features
from batchproj.errors import SpaceError
from batchproj.kaldi_fbank import HOP, FbankInput, KaldiFbank, fbank_input
from batchproj.media import AudioSpec, Segment, Spec
from batchproj.model_folder import complete_config, other_kind, read_config, sound_settings
from batchproj.schema import Modality
from batchproj.segments import LEAST_STEP_S
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

    from batchproj.accelerator import Coming
    from batchproj.torch_runtime import Batches

Array = npt.NDArray[np.float32]

_AST = "audio-spectrogram-transformer"
_WAVES = frozenset({"wav2vec2", "hubert", "wavlm"})
_DEFAULT_WINDOW_S = 30.0
"""Of models on samples, which have no limit of their own; their attention grows with the square of it."""
_STEP_S = 0.5
"""Where padding is exact, clips are filled up to the next half second: few batch shapes, little padding."""


class Config(EncoderConfig):
    """An encoder of sound whatever it is of; features are not normalised.

    AST's feature is its `pooler_output`, the mean of class and distillation token; the feature of
    wav2vec 2.0, HuBERT and WavLM is the mean over the frames of the real sound, as transformers'
    own classifiers pool. Longer sounds are cut into windows of `window_s`, a vector each: 10.24 s
    (or what the model takes) for AST and no longer, 30 s for the others unless it is given.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.AUDIO})

    window_s: float | None = Field(default=None, ge=LEAST_STEP_S, le=300)

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a feature, from the folder's JSON files."""
        tokens = self.describe_tokens(model, modality)
        pooling = {"pooling": "mean" if tokens.mean_pooled else "pooler"}
        return Description(tokens.dim, {**tokens.decides, **pooling}, longest=tokens.longest)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the last layer's frames, or AST's patches, time by time; only of what hears the real sound."""
        self.require(modality)
        wanted = self._input(model.path)
        decides = {
            "kind": self.kind,
            "weights": model.digest,
            "preprocess": wanted.decides(),
            "window_s": self._window_s(wanted),
            "dtype": self.dtype,
        }
        width = int(complete_config(model.path).hidden_size)
        return Description(width, decides, isinstance(wanted, _WaveInput), self._window_s(wanted))

    def build(self, model: LocalModel, modality: Modality, threads: int) -> AudioEncoder:
        """Load the weights."""
        from batchproj import torch_runtime

        self.require(modality)
        torch_runtime.use_threads(threads)
        wanted = self._input(model.path)
        network: _Network
        if isinstance(wanted, FbankInput):
            network = _Spectrograms(model.path, wanted, self.dtype)
        else:
            network = _Waves(model.path, wanted, self.dtype)
        spec = AudioSpec(wanted.sample_rate, self._window_s(wanted))
        dtype = torch_runtime.torch_dtype(self.dtype)
        return AudioEncoder(network, spec, int(complete_config(model.path).hidden_size), dtype)

    def _input(self, folder: Path) -> FbankInput | _WaveInput:
        name = read_config(folder).get("model_type")
        if name == _AST:
            return _fbank(folder)
        if name in _WAVES:
            return _wave_input(folder)
        known = ", ".join(sorted({_AST, *_WAVES}))
        raise SpaceError(
            f"'{name}' in {folder} is no sound model of kind audio: {other_kind(name, f'{known} was expected')}"
        )

    def _window_s(self, wanted: FbankInput | _WaveInput) -> float:
        if isinstance(wanted, _WaveInput):
            return self.window_s or _DEFAULT_WINDOW_S
        most = wanted.frames * HOP / wanted.sample_rate
        if self.window_s is not None and self.window_s > most:
            raise SpaceError(f"window_s is {self.window_s}, this model takes at most {most} s")
        return self.window_s or most


class _Clip(NamedTuple):
    """What the network gets of a sound, (F, M) or (N,), how much of it is real, and the tokens: real and all."""

    values: Array
    real: int
    tokens: int
    all_tokens: int


class _Network(Protocol):
    """A loaded model with its preprocessing."""

    width: int

    def clip(self, samples: Array) -> _Clip: ...

    def pooled(self, clips: Sequence[_Clip]) -> Features | Coming:
        """Features (B, D) of clips of one shape, all of them real to the end or none."""
        ...

    def tokens(self, clips: Sequence[_Clip]) -> list[Features]:
        """Tokens (T, D) of the same."""
        ...


class AudioEncoder:
    """A loaded encoder of sound."""

    def __init__(self, network: _Network, spec: AudioSpec, dim: int, dtype: torch.dtype) -> None:
        from batchproj.torch_runtime import batches

        self._network, self._limits, self._dim = network, spec, dim
        self._pooled, self._tokens = batches(network.pooled, dtype), batches(network.tokens, dtype)
        self.spec: Spec = spec

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Sounds (N,) at the spec's rate, up to a window each -> (B, D) float32."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        return np.stack(self._run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Features]:
        """Sounds as in `encode` -> their frames or patches, (T, D) float32 each."""
        return self._run(self._tokens, segments)

    def _run(self, sounds: Batches[_Clip], segments: Sequence[Segment]) -> list[Features]:
        from batchproj.torch_runtime import forward_tokens

        clips = [self._clip(np.asarray(segment.data, np.float32)) for segment in segments]
        most = forward_tokens(self._network.width)
        # transformers drops an all-true mask and then takes another attention kernel
        return sounds.run(
            clips,
            key=lambda clip: (clip.values.shape, clip.real == len(clip.values)),
            full=lambda clip: max(1, most // clip.all_tokens),
        )

    def _clip(self, samples: Array) -> _Clip:
        rate, most = self._limits.sample_rate, self._limits.window_s
        if len(samples) > round(most * rate):
            raise SpaceError(
                f"a sound of {len(samples) / rate:.1f} s, at most {most} s expected: decode with the encoder's own spec"
            )
        return self._network.clip(samples)


class _Spectrograms:
    """AST, on a spectrogram of its whole window, what is missing filled up as its feature extractor does."""

    def __init__(self, folder: Path, wanted: FbankInput, dtype: Any) -> None:
        from transformers import AutoModel

        from batchproj import torch_runtime

        self._fbank = KaldiFbank(wanted)
        self._model = torch_runtime.load_pretrained(AutoModel, folder, dtype)
        config = self._model.config
        self.width = int(config.hidden_size)
        self._patch, self._stride = int(config.patch_size), int(config.time_stride)
        self._rows = (wanted.mels - self._patch) // int(config.frequency_stride) + 1

    def clip(self, samples: Array) -> _Clip:
        fbank_FM = self._fbank(samples)
        times = (len(fbank_FM) - self._patch) // self._stride + 1
        # patches overlap, and those that hear nothing of the sound are left out
        heard = min(times, -(-self._fbank.heard(samples) // self._stride))
        return _Clip(fbank_FM, len(fbank_FM), self._rows * heard, self._rows * times + 2)

    def pooled(self, clips: Sequence[_Clip]) -> Features | Coming:
        import torch

        from batchproj.torch_runtime import to_host

        with torch.inference_mode():
            return to_host(self._run(clips).pooler_output)

    def tokens(self, clips: Sequence[_Clip]) -> list[Features]:
        import torch

        from batchproj.torch_runtime import to_numpy

        with torch.inference_mode():
            states_BTD = to_numpy(self._run(clips).last_hidden_state[:, 2:])
        # the model's order is band by band: time by time, what is after the sound's end can be left out
        by_band = states_BTD.reshape(len(clips), self._rows, -1, self.width)
        by_time = by_band.swapaxes(1, 2).reshape(states_BTD.shape)
        return [states_TD[: clip.tokens] for states_TD, clip in zip(by_time, clips, strict=True)]

    def _run(self, clips: Sequence[_Clip]) -> Any:
        from batchproj.accelerator import stacked

        return self._model(input_values=stacked([clip.values for clip in clips]).to(self._model.dtype))


class _WaveInput(NamedTuple):
    """How samples are prepared: at which rate, scaled to mean 0 and variance 1 or not, padded or not.

    Padding is invisible, given a mask, to models that normalise each moment by itself ("layer").
    Those that normalise a channel over all of the sound ("group") were trained without a mask and
    hear padding as silence: their sounds are never padded, and share a batch if equally long.
    """

    sample_rate: int
    normalize: bool
    masked: bool

    def decides(self) -> dict[str, Any]:
        """The part of a fingerprint that is about sound, in JSON's own types."""
        return {**self._asdict(), "step_s": _STEP_S if self.masked else None}


class _Waves:
    """wav2vec 2.0, HuBERT or WavLM."""

    def __init__(self, folder: Path, wanted: _WaveInput, dtype: Any) -> None:
        from transformers import AutoModel

        from batchproj import torch_runtime
        from batchproj.bf16_convolutions import keep_right

        # a file may lack the vector of masked frames: it is for training
        self._model = torch_runtime.load_pretrained(AutoModel, folder, "fp32", unused=["masked_spec_embed"])
        _fold_weight_norm(self._model)
        _halve(self._model, torch_runtime.torch_dtype(dtype))
        keep_right(self._model)
        config = self._model.config
        self.width = int(config.hidden_size)
        self._wanted, self._kernels = wanted, list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._least = 1
        for kernel, stride in reversed(self._kernels):
            self._least = (self._least - 1) * stride + kernel

    def clip(self, samples: Array) -> _Clip:
        """Scaled, then filled up with silence: to one frame at least, to the next half second where that is exact."""
        if self._wanted.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(1e-7))
        real = max(len(samples), self._least)
        step = round(_STEP_S * self._wanted.sample_rate)
        length = -(-real // step) * step if self._wanted.masked else real
        filled = np.pad(samples, (0, length - len(samples)))
        return _Clip(filled, real, self._frames(real), self._frames(length))

    def pooled(self, clips: Sequence[_Clip]) -> Features | Coming:
        import torch

        from batchproj.accelerator import to_device
        from batchproj.torch_runtime import to_host

        with torch.inference_mode():
            states_BTD = self._states(clips).float()
            lengths_B = to_device(np.array([clip.tokens for clip in clips]))
            real_BT = torch.arange(states_BTD.shape[1], device=states_BTD.device) < lengths_B[:, None]
            return to_host((states_BTD * real_BT[:, :, None]).sum(1) / lengths_B[:, None])

    def tokens(self, clips: Sequence[_Clip]) -> list[Features]:
        import torch

        from batchproj.torch_runtime import to_numpy

        with torch.inference_mode():
            states_BTD = to_numpy(self._states(clips))
        return [states_TD[: clip.tokens] for states_TD, clip in zip(states_BTD, clips, strict=True)]

    def _states(self, clips: Sequence[_Clip]) -> torch.Tensor:
        import torch

        from batchproj.accelerator import stacked, to_device

        samples_BN = stacked([clip.values for clip in clips])
        real_B = to_device(np.array([clip.real for clip in clips]))
        mask_BN = (torch.arange(samples_BN.shape[1], device=samples_BN.device) < real_B[:, None]).long()
        given = {"attention_mask": mask_BN} if self._wanted.masked else {}
        states_BTD: torch.Tensor = self._model(input_values=samples_BN, **given).last_hidden_state
        return states_BTD

    def _frames(self, samples: int) -> int:
        for kernel, stride in self._kernels:
            samples = (samples - kernel) // stride + 1
        return samples


def _fold_weight_norm(network: Any) -> None:
    """The convolution of positions keeps its weight as length and direction, to be put together at each call."""
    from torch.nn.utils import parametrize

    convolution = network.encoder.pos_conv_embed.conv
    if parametrize.is_parametrized(convolution, "weight"):
        parametrize.remove_parametrizations(convolution, "weight")


def _halve(network: Any, dtype: torch.dtype) -> None:
    """All but the first convolution and its norm: there samples of all loudnesses would lose their low bits."""
    network.to(dtype)
    first = network.feature_extractor.conv_layers[0].float()
    first.register_forward_hook(lambda _layer, _inputs, output: output.to(dtype))


def _fbank(folder: Path) -> FbankInput:
    """The folder's settings; SpaceError if they make spectrograms that its model does not take."""
    wanted, config = fbank_input(folder), complete_config(folder)
    if (wanted.mels, wanted.frames) != (config.num_mel_bins, config.max_length):
        raise SpaceError(
            f"sound settings in {folder} make {wanted.frames} frames of {wanted.mels} mels, its model takes "
            f"{config.max_length} of {config.num_mel_bins}: use the preprocessor_config.json that belongs to the model"
        )
    return wanted


def _wave_input(folder: Path) -> _WaveInput:
    found, config = sound_settings(folder), complete_config(folder)
    if getattr(config, "add_adapter", False):
        raise SpaceError(f"the model in {folder} ends in an adapter for a decoder: take one without (add_adapter)")
    # a batch norm before the convolution of positions gives padding a sound; WavLM's own attention warns of masks
    shows = getattr(config, "conv_pos_batch_norm", False) or config.model_type == "wavlm"
    try:
        return _WaveInput(
            int(found["sampling_rate"]),
            bool(found.get("do_normalize", True)),
            config.feat_extract_norm == "layer" and not shows,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{folder}: sound settings without a usable {error}, as Wav2Vec2FeatureExtractor has it"
        raise SpaceError(reason) from error
