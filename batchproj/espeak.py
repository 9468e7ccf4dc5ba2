"""Speech from the eSpeak NG library that the wheel `espeakng-loader` carries."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchproj.errors import UsageError

SAMPLE_RATE = 22_050
"""Hz; what eSpeak NG's formant voices are made at."""

# Constants of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_PARAMETER_RATE = 1
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1
_OK = 0

_NOISE_SEED = 1

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The synthesiser of this process: one library, one global state, one thread at a time.

    The state is never reset, not even by espeak_Terminate: breath noise and flutter go on from
    clip to clip, so that a clip's samples depend on all clips before it. For the same bytes
    twice, say the same texts in the same order in a fresh process.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_folder = Path(espeakng_loader.get_data_path()).parent
        rate = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, str(data_folder).encode(), _INITIALIZE_DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise UsageError(
                f"eSpeak NG answered {rate} where {SAMPLE_RATE} Hz was expected: reinstall espeakng-loader"
            )
        self._pieces: list[npt.NDArray[np.int16]] = []
        self._callback = _SynthCallback(self._keep)  # the library holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, words_per_minute: int) -> npt.NDArray[np.int16]:
        """Samples (N,) int16 at SAMPLE_RATE. Raises UsageError if eSpeak NG lacks the voice."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != _OK:
            raise UsageError(f"eSpeak NG has no voice '{voice}': use one like 'en-us' or 'en-us+f3'")
        self._library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
        self._pieces.clear()
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))  # breath noise; else of the clock
        data = text.encode()
        status = self._library.espeak_Synth(
            data, ctypes.c_size_t(len(data) + 1), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != _OK or not self._pieces:
            raise UsageError(f"eSpeak NG said nothing for '{text}' (status {status}): give it words")
        return np.concatenate(self._pieces)

    def _keep(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on
