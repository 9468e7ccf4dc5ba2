"""Descriptions of encoders, remembered on this machine.

To describe an encoder takes its model's library, seconds of imports, in every command and for modalities that are not
even in the source. Descriptions are kept below $BATCHPROJ_CACHE, ~/.cache/batchproj if that is unset, by all they
follow from: model, settings, our own code and the versions of the libraries. Old ones stay; they are small.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import batchproj
from batchproj.encode import Description, EncoderConfig
from batchproj.fetching import cache_root
from batchproj.schema import Cache, Modality
from batchproj.weights import LocalModel

_DESCRIPTION = TypeAdapter(Description)
_LIBRARIES = ("timm", "torch", "transformers")
"""What `describe` asks; our own code reads all else."""


def described(config: EncoderConfig, model: LocalModel, modality: Modality, cache: Cache) -> Description:
    """`config.describe` of a model, or `describe_tokens`; raises SpaceError as they do, which is not remembered."""
    file = None
    with suppress(RuntimeError):  # nobody's home: nothing is remembered
        file = cache_root() / "descriptions" / f"{_key(config, model, modality, cache)}.json"
    with suppress(OSError, ValidationError):
        if file is not None:
            return _DESCRIPTION.validate_json(file.read_bytes())
    describe = config.describe if cache == "pooled" else config.describe_tokens
    found = _DESCRIPTION.dump_json(describe(model, modality))
    with suppress(OSError):  # a home that cannot be written to costs the next command its seconds, nothing else
        if file is not None:
            _write(file, found)
    return _DESCRIPTION.validate_json(found)  # as it will be read: a tuple is a list by then


def _key(config: EncoderConfig, model: LocalModel, modality: Modality, cache: Cache) -> str:
    asked = {
        "config": config.model_dump(mode="json", exclude={"model", "revision", "digest"}),
        "model": model.digest,
        "files": _files(model.path),
        "modality": modality,
        "cache": cache,
        "code": _CODE,
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Everything there, links followed: a description may look at files that the digest of the weights leaves out."""
    found = []
    for inside, _, names in os.walk(folder, followlinks=True):
        for name in names:
            with suppress(OSError):  # a link to nothing
                stat = (Path(inside) / name).stat()
                found.append((str((Path(inside) / name).relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def _code() -> str:
    """Digest of our own source files."""
    root = Path(batchproj.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


_CODE = _code()
"""Now, and not when it is asked for: what is changed on disk later is not what this process runs."""


def _version(name: str) -> str | None:
    """Of the library that is loaded, else of the one that would be."""
    if (loaded := getattr(sys.modules.get(name), "__version__", None)) is not None:
        return str(loaded).partition("+")[0]  # metadata do not tell the build
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all: other processes read it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(scratch).rename(file)
    finally:
        Path(scratch).unlink(missing_ok=True)
