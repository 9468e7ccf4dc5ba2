"""CLAP's log-mel spectrogram of a window of sound, as its feature extractor's settings say.

Source: Wu et al. 2023 (LAION CLAP), arXiv:2211.06687; the arithmetic is that of transformers'
`ClapFeatureExtractor`: reflected edges, periodic Hann window, power, mel filters, decibels.
N samples, F frames, M mels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from batchproj.errors import SpaceError
from batchproj.model_folder import sound_settings

Padding = Literal["repeatpad", "repeat", "pad"]
Mel = npt.NDArray[np.float32]

_FLOOR = 1e-10
"""Power below it counts as it: -100 dB."""


@dataclass(frozen=True)
class ClapInput:
    """How a sound becomes a spectrogram; sounds of less than `window_s` are repeated or filled with silence."""

    mels: int
    sample_rate: int
    hop: int
    fft: int
    window_s: int
    low_hz: float
    high_hz: float
    filters: Literal["htk", "slaney"]
    padding: Padding

    @property
    def window(self) -> int:
        """Samples in a window."""
        return self.window_s * self.sample_rate

    @property
    def frames(self) -> int:
        return self.window // self.hop + 1

    def decides(self) -> dict[str, Any]:
        """The part of a fingerprint that is about sound, in JSON's own types."""
        return asdict(self)


def clap_input(folder: Path) -> ClapInput:
    """Read the feature extractor's settings saved with the model; SpaceError if they are missing.

    Models trained with feature fusion have filters of their own; a window is never longer than what
    they take, so that there is nothing to fuse.
    """
    found = sound_settings(folder)
    try:
        if found["padding"] not in get_args(Padding):
            raise ValueError(f"padding ({found['padding']})")
        return ClapInput(
            mels=int(found["feature_size"]),
            sample_rate=int(found["sampling_rate"]),
            hop=int(found["hop_length"]),
            fft=int(found["fft_window_size"]),
            window_s=_whole("max_length_s", found["max_length_s"]),
            low_hz=float(found["frequency_min"]),
            high_hz=float(found["frequency_max"]),
            filters="htk" if found["truncation"] == "fusion" else "slaney",
            padding=found["padding"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SpaceError(
            f"{folder}: sound settings without a usable {error}, as ClapFeatureExtractor has it"
        ) from error


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ValueError(f"{name} ({value})")
    return int(value)


class ClapMel:
    """Turns sounds into (F, M) float32 decibels; the filters are made once."""

    def __init__(self, wanted: ClapInput) -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        self._input = wanted
        slaney = wanted.filters == "slaney"
        bank = mel_filter_bank(
            num_frequency_bins=wanted.fft // 2 + 1,
            num_mel_filters=wanted.mels,
            min_frequency=wanted.low_hz,
            max_frequency=wanted.high_hz,
            sampling_rate=wanted.sample_rate,
            norm="slaney" if slaney else None,
            mel_scale="slaney" if slaney else "htk",
        )
        self._filters = torch.from_numpy(bank.T).to(torch.float64).contiguous()
        self._hann = torch.hann_window(wanted.fft, dtype=torch.float64)

    def __call__(self, samples: npt.NDArray[np.float32]) -> Mel:
        """(N,) samples, N at most a window -> (F, M) float32.

        In float64: float32 would put its own noise below loud tones.
        """
        import torch

        whole = torch.from_numpy(self._filled(samples).astype(np.float64))
        with torch.inference_mode():
            spectrum = torch.stft(whole, self._input.fft, self._input.hop, window=self._hann, return_complex=True)
            decibels = 10 * torch.clamp(self._filters @ spectrum.abs() ** 2, min=_FLOOR).log10()
        return np.ascontiguousarray(decibels.T.to(torch.float32).numpy())

    def _filled(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A whole window: the sound as often as it fits, then silence (`repeatpad`) or its start (`repeat`)."""
        window = self._input.window
        if self._input.padding != "pad":
            times = window // len(samples) + (self._input.padding == "repeat")
            samples = np.tile(samples, times)[:window]
        return np.pad(samples, (0, window - len(samples)))
