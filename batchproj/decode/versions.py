"""Which decoders are here: another version of one may open what this one could not."""

from __future__ import annotations

from batchproj.errors import BatchprojError

DECODE_EPOCH = 3
"""Raised by hand when our own code comes to open, or to refuse, something that it did not before."""


def decoders() -> dict[str, str]:
    """Versions of the libraries that parse items, and of our own code around them, as snapshots record them.

    Raises BatchprojError if one cannot be loaded here: no item would be to blame.
    """
    try:
        import av
        import PIL
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise BatchprojError(f"a library that decodes cannot be loaded: {error}; install batchproj again") from error
    return {
        "pillow": PIL.__version__,
        "pyav": av.__version__,
        "ffmpeg": str(av.ffmpeg_version_info),
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
        "epoch": str(DECODE_EPOCH),
    }
