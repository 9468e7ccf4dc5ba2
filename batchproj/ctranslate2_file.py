"""Shapes of the tensors in a CTranslate2 `model.bin`, read without loading it.

Format: `ctranslate2/specs/model_spec.py`, `ModelSpec._serialize`: version, name, revision, then
each variable's name, rank, dims, type, byte count and bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from batchproj.errors import SpaceError

_VERSIONS = range(4, 7)


def tensor_shapes(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The model's class name (`WhisperSpec`, ...) and each tensor's shape.

    Raises SpaceError if `path` is not such a file.
    """
    try:
        with path.open("rb") as stream:
            (version,) = _numbers(stream, "I")
            if version not in _VERSIONS:
                raise SpaceError(f"{path} is not a CTranslate2 model of format 4 to 6 (found {version})")
            name = _string(stream)
            _, count = _numbers(stream, "II")
            return name, dict(_variable(stream) for _ in range(count))
    except (struct.error, UnicodeDecodeError) as error:
        raise SpaceError(f"{path} ends early or is not a CTranslate2 model: {error}") from error


def _variable(stream: BinaryIO) -> tuple[str, tuple[int, ...]]:
    name = _string(stream)
    (rank,) = _numbers(stream, "B")
    shape = _numbers(stream, f"{rank}I")
    _, size = _numbers(stream, "BI")
    stream.seek(size, 1)
    return name, shape


def _string(stream: BinaryIO) -> str:
    (length,) = _numbers(stream, "H")
    return stream.read(length)[:-1].decode()


def _numbers(stream: BinaryIO, layout: str) -> tuple[int, ...]:
    layout = f"<{layout}"
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))
