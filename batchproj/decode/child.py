"""What runs in a decoder process: bytes of strangers in, pixels and samples out, within limits.

    python -P -m batchproj.decode.child FILES {"modality", "spec", "limits", "piece"}

FILES are descriptors, with a comma between: the socket, and the file of `decode.turns` if one is shared.

Once its libraries are loaded it opens no file and no connection any more, and writes none: it may have no
further file descriptor, and files of its own would have size 0. Memory, processor time and time are limited
for each item, by the kernel, so that a decoder that no longer listens ends as well.

    asked      "look" or "decode", and the item's bytes; of a large item the size behind the word, and no bytes
    answered   {"modality"} after a look inside a container;
               {"segments": [[shape, dtype, start, end], ...], "last"} and each segment's bytes, piece by piece;
               {"fault": [reason, detail]}; or {"memory": true} before it ends for want of memory
    between    {"range": [begin, end]} of a large item's bytes, which are then sent

Nothing that crosses is unpickled, on either side.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import av
import numpy as np
from pydantic import TypeAdapter

from batchproj.confined_process import READY
from batchproj.confinement import address_space, close_doors, cpu_s, limit
from batchproj.decode import turns
from batchproj.decode.content import KEPT_BYTES, Content, Ranges
from batchproj.decode.faults import failures_as_faults
from batchproj.decode.item import Piece, PieceSize, decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decode.sniff import look_inside
from batchproj.errors import BatchprojError, ItemFault
from batchproj.media import AudioSpec, ImageSpec, VideoSpec
from batchproj.schema import Modality

MediaSpec = ImageSpec | AudioSpec | VideoSpec
"""Of what is decoded in a process of its own; text is not, Python reads it itself."""


@dataclass(frozen=True)
class Work:
    """What a decoder process is for: one modality, or only to look into containers."""

    modality: Modality | None
    spec: MediaSpec | None
    limits: Limits
    piece: PieceSize


_IMPORTED_LATE = ("PIL.ImageCms", "PIL.ImageColor", "PIL.ImageFilter", "PIL.ImagePalette")
"""By Pillow, when a picture wants it; so does PyAV with kinds of streams."""
WORK = TypeAdapter(Work)
LOOK, DECODE = b"look", b"decode"
_NO_MEMORY = b'{"memory": true}'


def main(files: str, told: str) -> None:
    """Answer until the other side is gone."""
    socket, *shared = map(int, files.split(","))
    work = WORK.validate_json(told)
    turns.share(*shared)
    connection: Connection[Any, Any] = Connection(socket)
    idle_bytes = address_space()
    _close_all_doors()
    connection.send_bytes(READY)
    while True:
        try:
            look, data = _asked(connection)
        except EOFError:
            return
        # beside what is here of the item itself, of which libraries make a copy
        here_bytes = len(data) if isinstance(data, bytes) else KEPT_BYTES
        limit(resource.RLIMIT_AS, idle_bytes + 2 * here_bytes + work.limits.decode_bytes)
        limit(resource.RLIMIT_CPU, math.ceil(cpu_s() + work.limits.cpu_seconds(len(data))))
        try:
            _answer(connection, _answers(look, data, work), work.limits.wall_seconds(len(data)))
        except MemoryError:
            limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
            connection.send_bytes(_NO_MEMORY)
            return  # what is left of it may be in pieces
        turns.end()
        limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        del data


def _asked(connection: Connection[Any, Any]) -> tuple[bool, Content]:
    """Whether only to look, and the item."""
    job, *size = connection.recv_bytes().split()
    if not size:
        return job == LOOK, connection.recv_bytes()

    def read(begin: int, end: int) -> bytes:
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # the other side may be busy with what it has
        try:
            connection.send_bytes(json.dumps({"range": [begin, end]}).encode())
            return connection.recv_bytes()
        except MemoryError:  # a library that called back would take it for the end of the file
            limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
            connection.send_bytes(_NO_MEMORY)
            os._exit(0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, left)

    return job == LOOK, Ranges(int(size[0]), read)


Answer = tuple[dict[str, Any], Piece | None]


def _answer(connection: Connection[Any, Any], answers: Iterator[Answer], seconds: float) -> None:
    while True:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            answer, piece = next(answers)
        except StopIteration:
            return
        except ItemFault as fault:
            answer, piece = {"fault": [fault.reason, fault.detail]}, None
        except BatchprojError as error:  # no item's fault: the other side is to raise it
            answer, piece = {"broken": str(error)}, None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # the other side may take its time
        connection.send_bytes(json.dumps(answer).encode())
        for segment in piece.segments if piece else ():
            connection.send_bytes(np.ascontiguousarray(segment.data).data.cast("B"))
        if piece is None:
            return
        del piece  # before the next one is made


def _answers(look: bool, data: Content, work: Work) -> Iterator[Answer]:
    with failures_as_faults():
        if look:
            yield {"modality": look_inside(data)}, None
            return
        assert work.modality is not None, "asked to decode without an encoder"
        assert work.spec is not None, "asked to decode without an encoder"
        for piece in decode_pieces(data, work.modality, work.spec, work.limits, work.piece):
            yield {"segments": [_described(segment) for segment in piece.segments], "last": piece.last}, piece


def _described(segment: Any) -> list[Any]:
    return [segment.data.shape, segment.data.dtype.name, segment.start, segment.end]


def _close_all_doors() -> None:
    """Load what libraries load late, which they cannot do any more, and close the doors."""
    for module in (*_IMPORTED_LATE, *(found.name for found in pkgutil.walk_packages(av.__path__, "av."))):
        importlib.import_module(module)
    close_doors()


if __name__ == "__main__":
    main(*sys.argv[1:])
