"""What is known of an encoder without its weights, remembered on this machine.

To find it out takes the model's library, seconds of imports, in every command and for modalities that are not even
in the source. It is kept below $BATCHPROJ_CACHE, ~/.cache/batchproj if that is unset, by all it follows from: model,
settings, our own code and the libraries' versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import batchproj
from batchproj.encode import Description, EncoderConfig
from batchproj.fetching import cache_root
from batchproj.schema import Cache, Modality
from batchproj.weights import LocalModel

_DESCRIPTION = TypeAdapter(Description)
_LIBRARIES = ("timm", "torch", "transformers", "tokenizers", "ctranslate2")


def described(config: EncoderConfig, model: LocalModel, modality: Modality, kept: Cache) -> Description:
    """`config.describe` of a model, or `describe_tokens`; raises SpaceError as they do, which is not remembered."""
    file = cache_root() / "descriptions" / f"{_key(config, model, modality, kept)}.json"
    with suppress(OSError, ValidationError):
        return _DESCRIPTION.validate_json(file.read_bytes())
    describe = config.describe if kept == "pooled" else config.describe_tokens
    found = _DESCRIPTION.dump_json(describe(model, modality))
    with suppress(OSError):  # a home that cannot be written to costs the next command its seconds, nothing else
        _write(file, found)
    return _DESCRIPTION.validate_json(found)  # as it will be read: a tuple is a list by then


def _key(config: EncoderConfig, model: LocalModel, modality: Modality, kept: Cache) -> str:
    asked = {
        "config": config.model_dump(mode="json", exclude={"model", "revision", "digest"}),
        "model": model.digest,
        "modality": modality,
        "cache": kept,
        "code": _code(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    """Our own source files, told apart as Python does for its compiled ones: by time and size."""
    root = Path(batchproj.__file__).parent
    stats = [(str(file.relative_to(root)), file.stat()) for file in sorted(root.rglob("*.py"))]
    told = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
    return hashlib.sha256(json.dumps([str(root), told]).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
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
    except OSError:
        Path(scratch).unlink(missing_ok=True)
        raise
