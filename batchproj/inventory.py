"""What can be used: the encoder families present, and the shipped spaces with what each needs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from batchproj import encode, weights
from batchproj.space import MemberFile, Space, open_space, shipped_spaces


@dataclass(frozen=True)
class Family:
    """A `kind` of encoder; `says` is the first line of its own file."""

    kind: str
    modalities: list[str]
    says: str


@dataclass(frozen=True)
class ShippedMember:
    """One modality of a shipped space; `projector` is None where the encoder has the space's width itself.

    `dims`, `parameters_m`, `download_mb` and `licence` as in `space.About`. `here`: nothing is to be fetched.
    """

    modality: str
    kind: str
    model: str
    revision: str | None
    projector: str | None
    dims: int
    parameters_m: int
    download_mb: int
    licence: str
    here: bool


@dataclass(frozen=True)
class ShippedSpace:
    """A shipped space; `to_train` are modalities whose projector nobody has trained yet."""

    name: str
    dim: int
    about: str
    to_train: list[str]
    members: list[ShippedMember]

    @property
    def here(self) -> bool:
        return all(member.here for member in self.members)

    @property
    def download_mb(self) -> int:
        """Of what is not here yet, each model once."""
        missing = {(m.model, m.revision): m.download_mb for m in self.members if not m.here}
        return sum(missing.values())


def families() -> list[Family]:
    """One for each file of `encode`."""
    found = []
    for kind in encode.kinds():
        module = importlib.import_module(f"{encode.__name__}.{kind}")
        says = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        found.append(Family(kind, sorted(module.Config.modalities), says))
    return found


def spaces() -> list[ShippedSpace]:
    """The shipped spaces; looks for their weights, fetches none."""
    return [_space(open_space(name).space) for name in shipped_spaces()]


def _space(space: Space) -> ShippedSpace:
    members = [_member(str(modality), member) for modality, member in space.members().items()]
    return ShippedSpace(space.name, space.dim, space.about or "", [str(m) for m in space.untrained()], members)


def _member(modality: str, member: MemberFile) -> ShippedMember:
    encoder: dict[str, Any] = member.encoder
    assert member.about is not None, "a test sees to it that shipped spaces have one"
    return ShippedMember(
        modality=modality,
        kind=encoder["kind"],
        model=encoder["model"],
        revision=encoder.get("revision"),
        projector=member.projector.kind if member.projector else None,
        **member.about.model_dump(),
        here=weights.is_here(encoder["model"], encoder.get("revision")),
    )
