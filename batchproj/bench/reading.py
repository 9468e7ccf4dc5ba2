"""How the contenders that are written by hand find and read their files, on disk or on S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def names(source: str) -> list[str]:
    """Ids of all files below the source, sorted."""
    if source.startswith("s3://"):
        prefix = source.removeprefix("s3://")
        return sorted(found.removeprefix(f"{prefix}/") for found in file_system().find(prefix))
    root = Path(source)
    return sorted(str(Path(folder, file).relative_to(root)) for folder, _, files in os.walk(root) for file in files)


def read(source: str, name: str) -> bytes:
    """One file."""
    if source.startswith("s3://"):
        return bytes(file_system().cat_file(f"{source.removeprefix('s3://')}/{name}"))
    return Path(source, name).read_bytes()


def read_many(source: str, wanted: list[str]) -> Iterator[bytes]:
    """Many small files, in their order; from S3 with 64 requests at once."""
    if source.startswith("s3://"):
        prefix = source.removeprefix("s3://")
        paths = [f"{prefix}/{name}" for name in wanted]
        found = file_system().cat(paths, batch_size=64)
        yield from (found[path] for path in paths)
    else:
        yield from (Path(source, name).read_bytes() for name in wanted)


def file_system() -> Any:
    """S3 by the standard AWS variables; s3fs keeps one instance for the process."""
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
