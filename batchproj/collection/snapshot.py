"""One visible state of a collection: the exact list of Parquet parts, and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from batchproj.collection import layout
from batchproj.decode.limits import Limits
from batchproj.errors import DamagedFile
from batchproj.objectstore import Folder
from batchproj.schema import Modality


class Part(BaseModel):
    """A Parquet file, of vectors if nothing else is said; `sha256` is of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    bytes: int
    sha256: str


class FeatureFile(Part):
    """A file of the feature cache, under its `fingerprint`."""

    fingerprint: str


class Fingerprints(BaseModel):
    """What made the features and the vectors of one modality, and the documents behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    feature: str
    vector: str
    feature_doc: dict[str, Any] = {}
    vector_doc: dict[str, Any] = {}


class Snapshot(BaseModel):
    """`snapshots/<run>.json`. `listed` counts items; `rows` counts vectors, one per segment.

    `manifest` are the files of its manifest, each under the name of the run that wrote it, the whole one
    first. `sealed` tells of tables and shards, by the begin of their rows' keys, with which content the
    manifest has all their rows. `decoders` are the versions of what decoded; older snapshots do not say.
    Together the lists say of every byte of the run what it has to be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    parent: str | None
    source: str
    space: str
    dim: int
    fingerprints: dict[Modality, Fingerprints]
    listed: int
    rows: int = 0
    limits: Limits = Limits()
    decoders: dict[str, str] = {}
    sealed: dict[str, str] = {}
    parts: list[Part] = []
    features: list[FeatureFile] = []
    manifest: list[Part] = []
    quarantine: Part | None = None

    def other_encoders(self, members: Mapping[Modality, Fingerprints]) -> set[Modality]:
        """Modalities whose encoder is another one here than there, or is only on one side."""
        mine, theirs = ({m: each.feature for m, each in side.items()} for side in (self.fingerprints, members))
        return {modality for modality in {*mine, *theirs} if mine.get(modality) != theirs.get(modality)}

    def judges_as(self, other: Snapshot) -> bool:
        """Whether an object that this run has quarantined would be by the other one too; untold decoders differ."""
        return (
            self.decoders == other.decoders
            and self.limits == other.limits
            and not self.other_encoders(other.fingerprints)
        )


def read_snapshot(folder: Folder, run: str) -> Snapshot:
    """Raises FileNotFoundError if there is none, DamagedFile if it is damaged."""
    try:
        return Snapshot.model_validate_json(folder.read(layout.snapshot(run)))
    except ValidationError as error:
        raise DamagedFile(f"{layout.snapshot(run)} is damaged; run: batchproj verify {folder.uri}") from error


def write_snapshot(folder: Folder, snapshot: Snapshot) -> None:
    folder.write(layout.snapshot(snapshot.run), snapshot.model_dump_json(indent=1).encode())
