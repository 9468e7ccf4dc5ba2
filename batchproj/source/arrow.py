"""Datasets that Hugging Face `datasets` saved to disk: Arrow streams, beside a file that lists them.

`at` of a row is the byte its record batch begins at and its number in that, from 0 on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from batchproj.errors import SourceError
from batchproj.objectstore import Folder, Listed, head
from batchproj.source.pinned import RangedFile, buffered, open_buffered
from batchproj.source.record import UNREADABLE, Record, pick, said, values_of

INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"


def is_dataset(folder: Folder) -> bool:
    """Whether `save_to_disk` has written this folder."""
    return folder.exists(SPLITS) or (folder.exists(STATE) and folder.exists(INFO))


def files(folder: Folder) -> list[Listed]:
    """The Arrow files of a dataset, or of all splits of a `DatasetDict`, in order; keys are below the folder.

    Raises SourceError if one that it names is missing.
    """
    try:
        if folder.exists(SPLITS):
            splits = [str(split) for split in json.loads(folder.read(SPLITS))["splits"]]
            return [listed for split in splits for listed in _files(folder, f"{split}/")]
        return _files(folder, "")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{folder.uri} is no whole dataset: {type(error).__name__} {said(error)}; save it again with save_to_disk"
        ) from error


def _files(folder: Folder, below: str) -> list[Listed]:
    names = [str(each["filename"]) for each in json.loads(folder.read(f"{below}{STATE}"))["_data_files"]]
    if odd := [name for name in names if "/" in name or name in ("", ".", "..")]:
        raise ValueError(f"its {STATE} names {odd[0]}")
    found = [head(f"{folder.uri}/{below}{name}") for name in names]
    return [Listed(each.uri, f"{below}{each.key}", each.size, each.version) for each in found]


def records(table: Listed, file: RangedFile) -> Iterator[Record]:
    """Raises SourceError if it is damaged."""
    try:
        with buffered(file) as opened:
            schema = pa.ipc.read_schema(opened)
            number = 0
            while (begun := opened.tell()) < table.size:
                batch = _next_batch(opened, schema)
                if batch is None:
                    break
                for at, values in enumerate(values_of(batch)):
                    number += 1
                    yield Record(number, (begun, at), values)
    except MemoryError:  # pyarrow's is one of its own as well
        raise
    except UNREADABLE as error:
        raise SourceError(f"{table.uri} is no sound Arrow stream: {said(error)}; save it again") from error


def read_block(uri: str, begun: int, wanted: Sequence[tuple[int, int]]) -> list[Any]:
    """Values by row number and column number, of one record batch; beside it only the schema is read."""
    with open_buffered(head(uri)) as file:
        schema = pa.ipc.read_schema(file)
        file.seek(begun)
        batch = _next_batch(file, schema)
        if batch is None:
            raise ValueError("no record batch begins there")
        return pick([batch], [(row, schema.names[column]) for row, column in wanted])


def _next_batch(file: Any, schema: pa.Schema) -> pa.RecordBatch | None:
    """The record batch that begins here; None at the end of the stream."""
    try:
        message = pa.ipc.read_message(file)
    except EOFError:
        return None
    if message.type != "record batch":
        raise ValueError(f"its message is a {message.type}, expected a record batch")
    return pa.ipc.read_record_batch(message, schema)
