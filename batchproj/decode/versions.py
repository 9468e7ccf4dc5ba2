"""Which decoders are here: another version of one may open what this one could not."""

from __future__ import annotations

import platform

from batchproj.errors import BatchprojError, UsageError

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


def check_decoders(expected: dict[str, str]) -> None:
    """Raises UsageError unless the decoders here are these: what a run says of its decoders is true of all its workers,
    or items would be tried again, or not, for what another one has."""
    here = decoders()
    others = [f"{name} {here.get(name)}, not {said}" for name, said in expected.items() if here.get(name) != said]
    if others:
        raise UsageError(
            f"the decoders on {platform.node()} are not those of the run: {'; '.join(others)}; nothing was made "
            "visible; use one image for all nodes (cluster/Dockerfile), or bring this one up to the others"
        )
