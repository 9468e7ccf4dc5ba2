"""A decoder in a process of its own: what it may do is limited, and what it dies of is one item's fault."""

from __future__ import annotations

import json
import math
import signal
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from batchproj import confined_process
from batchproj.confined_process import ConfinedProcess
from batchproj.confinement import environment
from batchproj.decode.child import DECODE, LOOK, WORK, Work
from batchproj.decode.content import KEPT_BYTES
from batchproj.decode.faults import one_line
from batchproj.decode.item import Piece
from batchproj.errors import BatchprojError, ItemFault
from batchproj.media import Segment
from batchproj.schema import Modality, Reason

PROGRAM = "batchproj.decode.child"
DEATHS = 2
"""So often an item may end its decoder: what dies once may have been killed from outside."""

_DTYPES = ("uint8", "float32")

_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": f"{4 << 20}", "MALLOC_TRIM_THRESHOLD_": f"{16 << 20}"}
"""What glibc keeps for the next picture instead of giving it back after each: a new page costs more than what crosses
between the processes (measured: of what a small picture takes, a quarter)."""


class _Died(Exception):
    """The process ended over an item; why, and as whose fault."""

    def __init__(self, why: str, reason: Reason = Reason.DECODER_CRASHED) -> None:
        super().__init__(why)
        self.reason = reason


class DecoderProcess:
    """One item at a time; the process is started by `start`, or when there is work for it, and again after it has died.

    It is told nothing of our environment: no credentials are in its memory.
    """

    def __init__(self, work: Work, turns: IO[bytes] | None = None) -> None:
        """`turns` is a file that it shares with the processes beside it, if there are any; see `decode.turns`."""
        self._work, self._turns = work, turns
        self._child: ConfinedProcess | None = None
        self._is_asked = False
        self._end: weakref.finalize[..., DecoderProcess] | None = None

    def start(self) -> None:
        """Have the process ready before there is work for it."""
        self._started()

    def look(self, data: bytes) -> Modality:
        """What `look_inside` finds in a container, and the faults it raises; with DECODER_CRASHED."""
        (answer,) = self._answers(LOOK, data)
        return Modality(answer["modality"])

    def pieces(self, data: bytes) -> Iterator[Piece]:
        """What `decode_pieces` gives, and the faults it raises; with DECODER_CRASHED, TOO_LARGE for want of memory."""
        for answer in self._answers(DECODE, data):
            yield answer["piece"]

    def close(self) -> None:
        """End the process; another one is started if there is more to do."""
        if self._end is not None:
            self._end()
        self._child, self._is_asked = None, False

    def _started(self) -> ConfinedProcess:
        if self._child is None:
            self._child = _start(self._work, self._turns)
            self._end = weakref.finalize(self, self._child.end)  # with this object, or with our own process
        return self._child

    def _answers(self, job: bytes, data: bytes) -> Iterator[dict[str, Any]]:
        """All answers to a job, each once, however often the process has to be started again."""
        given = 0
        for death in range(1, DEATHS + 1):
            try:
                for number, answer in enumerate(self._ask(job, data)):
                    if number == given:
                        given += 1
                        yield answer
                return
            except _Died as died:
                if death == DEATHS:
                    raise ItemFault(died.reason, str(died)) from None

    def _in_ranges(self, job: bytes, data: bytes) -> bool:
        """Whether it reads the item from here, so that its bytes are in memory once; Pillow wants pictures whole."""
        return len(data) > KEPT_BYTES and (job == LOOK or self._work.modality is not Modality.IMAGE)

    def _ask(self, job: bytes, data: bytes) -> Iterator[dict[str, Any]]:
        if self._is_asked:  # somebody keeps the rest of another answer, which he must not be given instead
            self.close()
        child = self._started()
        self._is_asked, finished = True, False
        try:
            if self._in_ranges(job, data):
                child.connection.send_bytes(b"%s %d" % (job, len(data)))
            else:
                child.connection.send_bytes(job)
                child.connection.send_bytes(data)
            while not finished:
                answer = _received(child.connection, data)
                finished = "piece" not in answer or answer["piece"].last
                if "memory" in answer:
                    self.close()
                    limit = f"{self._work.limits.decode_bytes:,} bytes"
                    raise _Died(f"decoding it takes more memory than {limit}", Reason.TOO_LARGE)
                if "fault" in answer:
                    reason, detail = answer["fault"]
                    raise ItemFault(Reason(reason), detail)
                if "broken" in answer:
                    raise BatchprojError(answer["broken"])
                yield answer
        except (EOFError, ConnectionError):
            status = child.end(patience_s=10)
            self.close()
            raise _Died(_cause(status, self._work, len(data))) from None
        finally:
            if self._child is child:
                self._is_asked = False
                if not finished:
                    self.close()  # in the middle of an answer, of which nobody wants the rest


def _start(work: Work, turns: IO[bytes] | None) -> ConfinedProcess:
    child = confined_process.start(
        PROGRAM,
        WORK.dump_json(work).decode(),
        what="a decoder process",
        shared=[turns.fileno()] if turns else [],
        variables={**environment(), **_KEPT_MEMORY},
    )
    try:
        child.wait_until_ready()
    except (EOFError, ConnectionError):
        status = child.end(patience_s=10)
        said = one_line(child.last_line)
        raise BatchprojError(f"the decoder process did not start (status {status}): {said}") from None
    return child


def _received(connection: Connection[Any, Any], item: bytes) -> dict[str, Any]:
    """The next answer; until it is there, ranges of the item are sent as they are asked for."""
    answer: dict[str, Any] = json.loads(connection.recv_bytes())
    while "range" in answer:
        begin, end = answer["range"]
        connection.send_bytes(memoryview(item)[begin:end])
        answer = json.loads(connection.recv_bytes())
    if "segments" not in answer:
        return answer
    segments = []
    for shape, dtype, start, end in answer["segments"]:
        assert dtype in _DTYPES, dtype
        data = np.empty(shape, dtype)
        connection.recv_bytes_into(data.data.cast("B"))
        segments.append(Segment(data, start, end))
    return {"piece": Piece(segments, answer["last"])}


def _cause(status: int, work: Work, size: int) -> str:
    """Why a process ended with this status, the same words for the same item on any machine."""
    if status == -signal.SIGXCPU:
        return f"decoding it takes more processor time than {math.ceil(work.limits.cpu_seconds(size))} s"
    if status == -signal.SIGALRM:
        return f"decoding it takes longer than {math.ceil(work.limits.wall_seconds(size))} s"
    if status >= 0:
        return f"its decoder ended with exit code {status}"
    hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
    return f"its decoder died of {signal.Signals(-status).name}{hint}"
