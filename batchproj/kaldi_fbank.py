"""Kaldi's log-mel filter bank as the Audio Spectrogram Transformer takes it, by its feature extractor's settings.

Source: Gong et al. 2021 (AST), arXiv:2104.01778; the arithmetic is that of transformers'
`ASTFeatureExtractor` without torchaudio, whether that is installed or not: 25 ms frames every 10 ms,
each without its mean, pre-emphasised, under a symmetric Hann window; power, mel filters, logarithm.
N samples, F frames, M mels.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchproj.errors import SpaceError
from batchproj.model_folder import sound_settings

Mel = npt.NDArray[np.float32]

HOP = 160
_FRAME, _FFT = 400, 512
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20
_FLOOR = 1.192092955078125e-07
"""Power below it counts as it: float32's epsilon, as in Kaldi."""


@dataclass(frozen=True)
class FbankInput:
    """How a sound becomes a spectrogram of `frames` frames, `(log power - mean) / (2 std)`."""

    mels: int
    frames: int
    sample_rate: int
    mean: float
    std: float

    def decides(self) -> dict[str, Any]:
        """The part of a fingerprint that is about sound, in JSON's own types."""
        return asdict(self)


def fbank_input(folder: Path) -> FbankInput:
    """Read the feature extractor's settings saved with the model; SpaceError if they are missing."""
    found = sound_settings(folder)
    try:
        is_normal = bool(found.get("do_normalize", True))
        return FbankInput(
            mels=int(found["num_mel_bins"]),
            frames=int(found["max_length"]),
            sample_rate=int(found["sampling_rate"]),
            mean=float(found["mean"]) if is_normal else 0.0,
            std=float(found["std"]) if is_normal else 0.5,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SpaceError(f"{folder}: sound settings without a usable {error}, as ASTFeatureExtractor has it") from error


class KaldiFbank:
    """Turns sounds into (F, M) float32; the filters are made once."""

    def __init__(self, wanted: FbankInput) -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        self._input = wanted
        with warnings.catch_warnings():
            # of AST's own 128 filters the lowest are narrower than a bin of the spectrum, and so empty
            warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
            bank = mel_filter_bank(
                num_frequency_bins=_FFT // 2 + 1,
                num_mel_filters=wanted.mels,
                min_frequency=_LOWEST_HZ,
                max_frequency=wanted.sample_rate // 2,
                sampling_rate=wanted.sample_rate,
                norm=None,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )
        self._filters = torch.from_numpy(bank).to(torch.float64).contiguous()
        self._hann = torch.hann_window(_FRAME, periodic=False, dtype=torch.float64)

    def __call__(self, samples: npt.NDArray[np.float32]) -> Mel:
        """(N,) samples -> (F, M) float32; what is left of F after the sound is zero before it is normalised.

        A sound of less than one frame, which the extractor refuses, is filled up to one with silence.
        """
        import torch

        whole = torch.from_numpy(np.pad(samples, (0, max(0, _FRAME - len(samples)))).astype(np.float64))
        with torch.inference_mode():
            log_FM = self._log_power(whole.unfold(0, _FRAME, HOP)[: self.heard(samples)])
        fbank_FM = np.zeros((self._input.frames, self._input.mels), np.float32)
        fbank_FM[: len(log_FM)] = log_FM.numpy()
        return (fbank_FM - np.float32(self._input.mean)) / np.float32(2 * self._input.std)

    def heard(self, samples: npt.NDArray[np.float32]) -> int:
        """How many of the F frames are of the sound, at least one."""
        return min(self._input.frames, max(0, len(samples) - _FRAME) // HOP + 1)

    def _log_power(self, frames: Any) -> Any:
        import torch

        level = frames - frames.mean(1, keepdim=True)
        # the first sample of a frame has none before it: Kaldi takes itself
        before = torch.cat([level[:, :1], level[:, :-1]], dim=1)
        spectrum = torch.fft.rfft((level - _PREEMPHASIS * before) * self._hann, n=_FFT)
        return torch.clamp(spectrum.abs() ** 2 @ self._filters, min=_FLOOR).log().to(torch.float32)
