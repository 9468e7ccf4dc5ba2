"""Lance tables as input; `at` of a row is the table's version and its number in that, from 0 on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batchproj.errors import SourceError
from batchproj.lance_store import lance_faults, storage_options
from batchproj.objectstore import Listed
from batchproj.retry import retrying
from batchproj.source.record import UNREADABLE, Record, pick, values_of

BATCH_ROWS = 256


def listed(uri: str) -> Listed:
    """The newest version of a table; raises SourceError if there is none."""
    try:
        dataset = _opened(uri, None)
    except UNREADABLE as error:
        raise SourceError(f"no Lance table at {uri}: {str(error)[:120]}") from error
    made = dataset.versions()[-1]["timestamp"]  # a table that was made anew counts its versions from 1 again
    return Listed(uri, uri.rpartition("/")[2], dataset.count_rows(), f"{dataset.version} of {made.isoformat()}")


def records(table: Listed) -> Iterator[Record]:
    """Raises SourceError if it is damaged."""
    version = int(table.version.split()[0])
    number = 0
    try:
        with lance_faults(table.uri):
            for batch in _opened(table.uri, version).to_batches(batch_size=BATCH_ROWS, scan_in_order=True):
                for values in values_of(batch):
                    number += 1
                    yield Record(number, (version, number - 1), values)
    except UNREADABLE as error:
        raise SourceError(f"{table.uri} cannot be read: {str(error)[:200]}") from error


def read_block(uri: str, version: int, wanted: Sequence[tuple[int, int]]) -> list[Any]:
    """Values by row number and column number, of one version."""
    dataset = _opened(uri, version)
    names = dataset.schema.names
    rows = sorted({row for row, _ in wanted})
    position = {row: number for number, row in enumerate(rows)}
    with lance_faults(uri):
        taken = dataset.take(rows, columns=[names[column] for column in sorted({column for _, column in wanted})])
    return pick(taken.to_batches(), [(position[row], names[column]) for row, column in wanted])


def _opened(uri: str, version: int | None) -> Any:
    import lance

    path = uri.removeprefix("file://")
    with lance_faults(uri):
        return retrying(lambda: lance.dataset(path, version=version, storage_options=storage_options()), uri)
