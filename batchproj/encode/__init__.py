"""Frozen encoders: segments in, features out. One file per family; its name is the `kind` in a space.

To add a family: a file here with a `Config` and an encoder class, and a test. Nothing to register.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from batchproj.config import validate
from batchproj.errors import SpaceError
from batchproj.media import Segment, Spec
from batchproj.schema import Modality
from batchproj.weights import LocalModel

FEATURE_EPOCH = 1
"""Raised by hand when our own code changes what an encoder returns by more than rounding, which another processor
changes too."""

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Description:
    """What is known of an encoder without loading its weights; cheap to make and to send.

    `dim` is D. `decides` holds all that decides a feature beside the input's bytes: kind,
    weights digest, preprocessing, pooling, dtype. No path, batch size, device or time.
    `mean_pooled`, of tokens: the pooled feature is their mean, up to its length.
    `longest` is what the model takes at once: tokens of a text, seconds of a sound.
    `frames`, of video: how many a model takes, None where it is free.
    """

    dim: int
    decides: dict[str, Any]
    mean_pooled: bool = False
    longest: float | None = None
    frames: int | None = None


class Encoder(Protocol):
    """A loaded model, on one worker."""

    spec: Spec

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Features (B, D) float32, row i of segment i, on any number of segments.

        A row depends on its own segment alone, to the bit: the encoder sorts, groups and pads
        as it likes inside, but neighbours, their order and their number never show.
        """
        ...

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Features]:
        """Tokens (T, D) float32 of each segment, T its own, no padding among them; exact as in `encode`.

        Called only if the config's `describe_tokens` says that there are any.
        """
        ...


@runtime_checkable
class Rehearsing(Protocol):
    """An encoder whose first batches take longer than the others."""

    def rehearse(self) -> None:
        """Do beforehand what the first batches would take longer for; takes as long as some ten of them."""
        ...


class EncoderConfig(BaseModel):
    """Fields every kind shares; each kind's `Config` adds its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    modalities: ClassVar[frozenset[Modality]]

    kind: str
    model: str
    revision: str | None = None
    digest: str | None = None
    dtype: Literal["bf16", "fp32"] = "bf16"

    def require(self, modality: Modality) -> None:
        """Raise SpaceError unless this kind takes `modality`."""
        if modality not in self.modalities:
            takes = " or ".join(sorted(self.modalities))
            raise SpaceError(f"encoder kind '{self.kind}' takes {takes}, not {modality}: choose another kind")

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """Read the model's own config files; raise SpaceError if it cannot serve this modality."""
        raise NotImplementedError(self.kind)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """The same of the features before pooling; raise SpaceError if the encoder has none to give."""
        raise SpaceError(
            f"{model.path}: encoder kind '{self.kind}' gives no {modality} tokens; leave out 'cache: tokens'"
        )

    def build(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """Load the weights; called once per worker."""
        raise NotImplementedError(self.kind)

    def build_for_queries(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """The same for what a user searches by: another encoder only where a model tells queries from items."""
        return self.build(model, modality, threads)


def kinds() -> list[str]:
    """Names of the encoder families present."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def parse_config(fields: dict[str, Any], where: str) -> EncoderConfig:
    """Make the config of `fields["kind"]`; SpaceError, starting with `where`, if it does not fit."""
    kind = str(fields.get("kind"))
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise SpaceError(f"{where}: no encoder kind '{kind[:100]}'; {hint}present are {', '.join(kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    config: EncoderConfig = validate(module.Config, fields, where)
    return config
