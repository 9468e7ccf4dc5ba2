"""From what a decoding library raises to an `ItemFault` with one line of detail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from batchproj.errors import BatchprojError, ItemFault
from batchproj.schema import Reason

_DETAIL_CHARS = 200
_NO_CODEC = re.compile(r"decoder \w+ not available")
_OBJECT_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and object addresses, at most 200 characters.

    An address would make the quarantine of two equal runs differ.
    """
    words = " ".join(_OBJECT_ADDRESS.sub("", text).split())
    return "".join(char if char.isprintable() else "?" for char in words)[:_DETAIL_CHARS]


def _is_broken(error: Exception) -> bool:
    """Whether the library lacks a part of itself: what Pillow says of a codec it was built without, or of a module."""
    lacks_module = isinstance(error, (ImportError, NameError)) and not isinstance(error, UnboundLocalError)
    return lacks_module or (isinstance(error, OSError) and _NO_CODEC.fullmatch(str(error)) is not None)


@contextmanager
def refusals_as_faults(library: str) -> Iterator[None]:
    """Turn whatever `library` raises on bad bytes into an ItemFault: TRUNCATED or CORRUPT.

    Libraries raise almost anything on hostile bytes (SyntaxError, struct.error, ...), so the net is
    wide; it goes around their calls only, where our own mistakes cannot hide in it. MemoryError is
    the machine's trouble, not the item's, and passes; so is a library without a part of itself: BatchprojError.
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
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        # strerror: PyAV's own text adds an error number and a call of FFmpeg's.
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ItemFault(Reason.TRUNCATED if cut else Reason.CORRUPT, one_line(f"{library}: {text}")) from error
