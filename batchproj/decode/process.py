"""A decoder in a process of its own: what it may do is limited, and what it dies of is one item's fault."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

import numpy as np

from batchproj.confinement import environment
from batchproj.decode.child import DECODE, LOOK, READY, WORK, Work
from batchproj.decode.content import KEPT_BYTES
from batchproj.decode.faults import one_line
from batchproj.decode.item import Piece
from batchproj.errors import BatchprojError, ItemFault, TryLater
from batchproj.media import Segment
from batchproj.schema import Modality, Reason

PROGRAM = "batchproj.decode.child"
DEATHS = 2
"""So often an item may end its decoder: what dies once may have been killed from outside."""

_DTYPES = ("uint8", "float32")


class _Died(Exception):
    """The process ended over an item; why, and as whose fault."""

    def __init__(self, why: str, reason: Reason = Reason.DECODER_CRASHED) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]

    def end(self, patience_s: float = 0) -> int:
        """Make sure that it is gone, of itself if it does so in time; its exit status."""
        self.connection.close()
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class DecoderProcess:
    """One item at a time; the process is started when there is work for it, and again after it has died.

    It is told nothing of our environment: no credentials are in its memory.
    """

    def __init__(self, work: Work, turns: IO[bytes] | None = None) -> None:
        """`turns` is a file that it shares with the processes beside it, if there are any; see `decode.turns`."""
        self._work, self._turns = work, turns
        self._child: _Child | None = None
        self._is_asked = False
        self._end: weakref.finalize[..., DecoderProcess] | None = None

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

    def _started(self) -> _Child:
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


def _start(work: Work, turns: IO[bytes] | None) -> _Child:
    ours, theirs = Pipe()
    with theirs, tempfile.TemporaryFile() as said:
        program = [sys.executable, "-P", "-m", PROGRAM]
        files = [theirs.fileno(), *([turns.fileno()] if turns else [])]
        told = [",".join(map(str, files)), WORK.dump_json(work).decode()]
        nothing = subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                [*program, *told],
                env=environment(),
                cwd="/",
                pass_fds=files,
                stdin=nothing,
                stdout=nothing,
                stderr=said,
            )
        except OSError as error:
            raise TryLater(f"cannot start a decoder process: {error}; run the same command again") from error
        child = _Child(process, ours)
        theirs.close()
        try:
            assert ours.recv_bytes() == READY
        except (EOFError, ConnectionError):
            status = child.end(patience_s=10)
            said.seek(0)
            last = one_line(said.read().decode(errors="replace").strip().rpartition("\n")[2])
            raise BatchprojError(f"the decoder process did not start (status {status}): {last}") from None
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
