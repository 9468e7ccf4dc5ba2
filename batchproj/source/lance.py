"""Lance tables as input; `at` of a row is the table's version and its number in that, from 0 on.

    python -P -m batchproj.source.lance SOCKET

That is the process which lists a table. Lance may abort its process over a damaged one, by an error text with a NUL
in it or a size that no machine has, and no exception tells of that. What was listed can be read, for its files never
change.

    asked      {"uri", "version", "patience_s"}
    answered   {"listed": [rows, version]} where no version is asked for;
               else {"batch": true} and an Arrow stream of one batch, for each, and {"end": true};
               or {"error": [its class, its text]}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

import pyarrow as pa

from batchproj.errors import BatchprojError, SourceError, TryLater, UsageError
from batchproj.lance_store import lance_faults, storage_options
from batchproj.objectstore import Listed
from batchproj.retry import configure, patience_s, retrying
from batchproj.source.ended import death
from batchproj.source.record import UNREADABLE, Record, pick, said, values_of

BATCH_ROWS = 256
_PROGRAM = "batchproj.source.lance"
_ERRORS = {each.__name__: each for each in (TryLater, UsageError, SourceError)}


def listed(uri: str) -> Listed:
    """The newest version of a table; raises SourceError if there is none."""
    (answer,) = _answers(uri, None)
    rows, version = answer["listed"]
    return Listed(uri, uri.rpartition("/")[2], rows, version)


def records(table: Listed) -> Iterator[Record]:
    """Raises SourceError if it is damaged."""
    version = int(table.version.split()[0])
    number = 0
    with _damage(f"{table.uri} cannot be read"), closing(_answers(table.uri, version)) as answers:
        for answer in answers:
            for values in values_of(answer["batch"]):
                number += 1
                yield Record(number, (version, number - 1), values)


def read_block(uri: str, version: int, wanted: Sequence[tuple[int, int]]) -> list[Any]:
    """Values by row number and column number, of one version."""
    dataset = _opened(uri, version)
    names = dataset.schema.names
    rows = sorted({row for row, _ in wanted})
    position = {row: number for number, row in enumerate(rows)}
    with lance_faults(uri):
        taken = dataset.take(rows, columns=[names[column] for column in sorted({column for _, column in wanted})])
    return pick(taken.to_batches(), [(position[row], names[column]) for row, column in wanted])


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """What Lance raises for a damaged table as SourceError: RuntimeError too, and panics, which are no Exception."""
    try:
        yield
    except (*UNREADABLE, RuntimeError, MemoryError) as error:
        raise SourceError(f"{what}: {said(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which lets nobody import it
            raise
        raise SourceError(f"{what}: {said(error)}") from error


def _opened(uri: str, version: int | None) -> Any:
    import lance

    path = uri.removeprefix("file://")
    with lance_faults(uri):
        return retrying(lambda: lance.dataset(path, version=version, storage_options=storage_options()), uri)


# --- the process that lists --------------------------------------------------------------------


def _answers(uri: str, version: int | None) -> Generator[dict[str, Any]]:
    """Raises SourceError if the table ends the process, TryLater if somebody else did, BatchprojError if it is broken.

    The process is gone when this generator is, exhausted or closed.
    """
    asked = json.dumps({"uri": uri, "version": version, "patience_s": patience_s()})
    with _lister() as (process, connection, told):
        try:
            connection.send_bytes(asked.encode())
            while "end" not in (answer := json.loads(connection.recv_bytes())):
                if "error" in answer:
                    name, text = answer["error"]
                    raise _ERRORS.get(name, BatchprojError)(text)
                if "batch" in answer:
                    (answer["batch"],) = pa.ipc.open_stream(connection.recv_bytes())
                yield answer
        except (EOFError, ConnectionError):
            raise death(uri, process.wait(), "Lance", told) from None


@contextmanager
def _lister() -> Iterator[tuple[subprocess.Popen[bytes], Connection[Any, Any], IO[bytes]]]:
    """The process, the connection to it, and what it wrote to its stderr."""
    with ExitStack() as held:
        try:
            told = held.enter_context(tempfile.TemporaryFile())
            ours, theirs = map(held.enter_context, Pipe())
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=told,
            )
        except OSError as error:
            raise TryLater(f"cannot start the process that lists: {error}; run the same command again") from error
        theirs.close()
        try:
            yield process, ours, told
        finally:
            process.kill()
            process.wait()


def main(socket: int) -> None:
    """List, and answer as told above."""
    connection: Connection[Any, Any] = Connection(socket)
    asked = json.loads(connection.recv_bytes())
    configure(asked["patience_s"])
    uri, version = asked["uri"], asked["version"]
    try:
        for batch in [_told(uri)] if version is None else _batches(uri, version):
            connection.send_bytes(json.dumps({"batch": True} if isinstance(batch, bytes) else batch).encode())
            if isinstance(batch, bytes):
                connection.send_bytes(batch)
        last: dict[str, Any] = {"end": True}
    except BatchprojError as error:
        last = {"error": [type(error).__name__, str(error)]}
    connection.send_bytes(json.dumps(last).encode())


def _told(uri: str) -> dict[str, Any]:
    with _damage(f"no Lance table at {uri}"):
        dataset = _opened(uri, None)
    with _damage(f"{uri} cannot be read"):
        made = dataset.versions()[-1]["timestamp"]  # a table that was made anew counts its versions from 1 again
        return {"listed": [dataset.count_rows(), f"{dataset.version} of {made.isoformat()}"]}


def _batches(uri: str, version: int) -> Iterator[bytes]:
    with _damage(f"{uri} cannot be read"), lance_faults(uri):
        for batch in _opened(uri, version).to_batches(batch_size=BATCH_ROWS, scan_in_order=True):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            yield bytes(sink.getvalue())


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # threads of Lance abort a process now and then as it takes itself apart
