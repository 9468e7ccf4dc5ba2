"""Trained projectors: features in, vectors of the shared space out. One file per kind.

B rows, D encoder dim, T tokens, K dim of the space. Kinds `linear` and `mlp` take pooled features
(B, D), `cross_attention` and `transformer` take tokens (B, T, D) with a padding mask. Weights and
config travel together in one safetensors file: the config as JSON in its metadata under `config`.
To add a kind: a file here with a `Config` and a projector class, and a test. Nothing to register.
The base classes are in `projector.py` and `token_projector.py`; this file imports no torch, for
planning and reading need only what a projector is.
"""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchproj.config import validate
from batchproj.errors import SpaceError

if TYPE_CHECKING:
    from batchproj.projector import Projector, ProjectorConfig

PROJECT_EPOCH = 1
"""Raised by hand when our own code changes what a projector returns."""

_LLAVA_NAME = re.compile("mlp([1-4])x_gelu")


@dataclass(frozen=True)
class Header:
    """What a projector file says of itself."""

    config: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.config.get("kind"))

    @property
    def takes(self) -> str:
        """What it projects: `tokens`, or `pooled` features."""
        return str(self.config.get("takes", "pooled"))

    @property
    def is_asked(self) -> bool:
        """Whether features of another modality are its queries."""
        return self.config.get("query_dim") is not None

    @property
    def in_dim(self) -> int:
        return int(self.config.get("in_dim", 0))

    @property
    def out_dim(self) -> int:
        return int(self.config.get("out_dim", 0))


def kinds() -> list[str]:
    """Names of the projector kinds present."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def parse_config(fields: dict[str, Any]) -> ProjectorConfig:
    """Make the config of `fields["kind"]`; `.build()` makes the projector.

    Raises SpaceError for an unknown kind or wrong fields.
    """
    fields = _spelt_out(fields)
    kind = str(fields.get("kind"))
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise SpaceError(
            f"no projector kind '{kind}': {hint}present are {', '.join(kinds())}, mlp1x_gelu to mlp4x_gelu"
        )
    module = importlib.import_module(f"{__name__}.{kind}")
    config: ProjectorConfig = validate(module.Config, fields, f"projector '{kind}'")
    return config


def plain_kind(kind: str) -> str:
    """The kind's file: `mlp` for a LLaVA name such as `mlp2x_gelu`, else the kind itself."""
    return "mlp" if _LLAVA_NAME.fullmatch(kind) else kind


def _spelt_out(fields: dict[str, Any]) -> dict[str, Any]:
    """A LLaVA name as fields of kind `mlp`: so many matrices, K wide, GELU between them and nothing beside."""
    found = _LLAVA_NAME.fullmatch(str(fields.get("kind")))
    if found is None:
        return fields
    hidden = (fields.get("out_dim"),) * (int(found[1]) - 1)
    return {"hidden": hidden, "skip": False, **fields, "kind": "mlp"}


def read_header(data: bytes, where: str) -> Header:
    """Read the config in a projector file's metadata, without its weights or torch.

    Raises SpaceError, starting with `where`, if the file is not such a projector.
    """
    # https://github.com/huggingface/safetensors: u64 length, then that many bytes of JSON
    try:
        (length,) = struct.unpack("<Q", data[:8])
        config = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["config"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise SpaceError(f"{where} has no projector config in its metadata: give a file of 'train'") from error
    return Header(config)


def loads(data: bytes, where: str = "the projector") -> Projector:
    """Build the projector of a file's bytes, of whatever kind, ready to project.

    Raises SpaceError, starting with `where`, if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    projector = parse_config(read_header(data, where).config).build()
    try:
        projector.load_state_dict(load_tensors(data))
    except SafetensorError as error:
        raise SpaceError(f"{where} cannot be read as safetensors ({error}): give a file of 'train'") from error
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise SpaceError(f"{where}: weights and config disagree ({lines[-1].strip()}): train it again") from error
    return projector.eval()


def load(path: Path) -> Projector:
    """Read a projector that `save` wrote; raises SpaceError if the file is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpaceError(f"{path} cannot be read ({error.strerror}): give a file of 'train'") from error
    return loads(data, str(path))
