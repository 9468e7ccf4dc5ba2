"""Whisper's log-mel spectrogram, without the 30 s of padding.

Source: Radford et al. 2022 (Whisper), arXiv:2212.04356, `whisper/audio.py`: 25 ms Hann windows every
10 ms at 16 kHz, Slaney mel filters, log10 cut 8 below the clip's maximum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000
HOP = 160
WINDOW_S = 30.0
WINDOW_SAMPLES = int(WINDOW_S * SAMPLE_RATE)
WINDOW_FRAMES = WINDOW_SAMPLES // HOP
_FFT = 400

Mel = npt.NDArray[np.float32]


class LogMel:
    """Turns sounds into (mels, frames) float32 on `device`; the filters are made once."""

    def __init__(self, mels: int, device: torch.device | str = "cpu") -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(
            num_frequency_bins=_FFT // 2 + 1,
            num_mel_filters=mels,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters = torch.from_numpy(bank.T.astype(np.float32)).contiguous().to(device)
        self._hann = torch.hann_window(_FFT).to(device)

    def __call__(self, samples: npt.NDArray[np.float32], frames: int) -> Mel:
        """What `tensor` gives, on the host."""
        mel: Mel = self.tensor(samples, frames).numpy(force=True)
        return mel

    def tensor(self, samples: npt.NDArray[np.float32], frames: int) -> torch.Tensor:
        """(N,) samples in [-1, 1], N at most 30 s -> the first `frames` frames of OpenAI's 3,000.

        Frames that hear padding alone are the constant that padding gives: they are filled in,
        not computed.
        """
        import torch

        heard = min(WINDOW_FRAMES, -(-(len(samples) + _FFT // 2) // HOP))
        length = min(WINDOW_SAMPLES, heard * HOP + _FFT)
        padded = np.zeros(length, np.float32)
        padded[: len(samples)] = samples
        with torch.inference_mode():
            log = self._log_power(torch.from_numpy(padded).to(self._filters.device))[:, :heard]
            quiet = torch.clamp(log.max(), min=-10.0) - 8.0
            mel = (torch.maximum(log, quiet) + 4.0) / 4.0
            silence = (torch.clamp(quiet, min=-10.0) + 4.0) / 4.0
            full = torch.cat([mel, silence.expand(len(mel), max(0, frames - heard))], dim=1)
        return full[:, :frames].contiguous()

    def _log_power(self, samples: torch.Tensor) -> torch.Tensor:
        import torch

        spectrum = torch.stft(samples, _FFT, HOP, window=self._hann, return_complex=True)
        power = spectrum[:, :-1].abs() ** 2
        return torch.clamp(self._filters @ power, min=1e-10).log10()
