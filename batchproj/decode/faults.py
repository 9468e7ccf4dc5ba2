"""From what a decoding library raises to an `ItemFault` with one line of detail."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchproj.errors import BatchprojError, ItemFault
from batchproj.schema import Reason

_DETAIL_CHARS = 200
_NO_CODEC = re.compile(r"decoder \w+ not available")
_OBJECT_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")

_OUT_OF_MEMORY = re.compile(r"out of memory|cannot allocate memory", re.IGNORECASE)
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and object addresses, at most 200 characters.

    An address would make the quarantine of two equal runs differ.
    """
    words = " ".join(_OBJECT_ADDRESS.sub("", text).split())
    return "".join(char if char.isprintable() else "?" for char in words)[:_DETAIL_CHARS]


def _is_broken(error: Exception) -> bool:
    """Whether the library lacks a part of itself: what Pillow says of a codec that it was built without.

    Not an ImportError: a decoder process opens no file, so that odd bytes which ask for one more module get it there.
    """
    if isinstance(error, NameError):
        return not isinstance(error, UnboundLocalError)
    return isinstance(error, OSError) and _NO_CODEC.fullmatch(str(error)) is not None


@contextmanager
def refusals_as_faults(library: str) -> Iterator[None]:
    """Turn whatever `library` raises on bad bytes into an ItemFault: TRUNCATED or CORRUPT.

    Libraries raise almost anything on hostile bytes (SyntaxError, struct.error, ...), so the net is
    wide; it goes around their calls only, where our own mistakes cannot hide in it. Want of memory, whose limit is
    set elsewhere, passes as MemoryError; a library without a part of itself is no item's fault: BatchprojError.
    """
    try:
        yield
    except (ItemFault, MemoryError):
        raise
    except Exception as error:
        if _is_broken(error):
            raise BatchprojError(
                f"{library} is not whole on this machine: {one_line(str(error))}; install it again; no item is blamed"
            ) from error
        if _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(f"{library}: {error}") from error
        if isinstance(error, OSError) and error.errno in _OUT_OF_FILES:
            raise  # of the machine, or of a decoder process that may have none: a mistake of ours
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        # strerror: PyAV's own text adds an error number and a call of FFmpeg's.
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if text.isdigit():  # a key that was not found, or a status
            text = f"{type(error.__cause__ or error).__name__} {text}"
        raise ItemFault(Reason.TRUNCATED if cut else Reason.CORRUPT, one_line(f"{library}: {text}")) from error


@contextmanager
def failures_as_faults() -> Iterator[None]:
    """Turn a mistake of our own that one item's bytes bring out into its fault: it must not stop the others.

    DECODER_CRASHED, with the place in our code that failed.
    """
    try:
        yield
    except (BatchprojError, MemoryError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        said = one_line(f"{type(error).__name__} in {where}: {error}; please report it with the file")
        raise ItemFault(Reason.DECODER_CRASHED, said) from error
