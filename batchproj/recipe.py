"""A recipe: one file that says how a run uses the machine and where its limits are."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from batchproj.config import read_yaml, validate
from batchproj.decode.limits import Limits
from batchproj.errors import SpaceError
from batchproj.objectstore import Folder, canonical
from batchproj.schema import Modality


class Pool(BaseModel):
    """Encoder workers of one modality; unset fields are sized to the machine.

    `workers` is a fixed number; with `min_workers` and `max_workers` instead, the pool grows while units wait for it,
    and with it a cluster that scales itself. Each worker holds `cpus` logical CPUs, `gpus` of a GPU (a half lets two
    share one), `memory_gib` and the node's own `resources` (`{gpu-l4: 1}`); Ray places it where all that is free, and
    counts no more than that: `threads` is what it really computes with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    workers: int | None = Field(default=None, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    max_workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    cpus: float | None = Field(default=None, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_gib: float | None = Field(default=None, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.workers is not None and (self.min_workers or self.max_workers):
            raise ValueError("workers is a fixed number: expected it, or min_workers and max_workers")
        if (self.min_workers or 1) > (self.max_workers or self.min_workers or 1):
            raise ValueError(f"min_workers {self.min_workers} is above max_workers {self.max_workers}")
        return self


class Tasks(BaseModel):
    """What one task that reads a unit holds; it waits more than it computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cpus: float = Field(default=0.1, gt=0)
    memory_gib: float | None = Field(default=None, gt=0)


class Units(BaseModel):
    """How large a unit of work may get; a crash loses at most the units in the workers' hands."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_items: int = Field(default=1024, ge=1, le=1024)
    max_bytes: int = Field(default=64 * 2**20, ge=1, le=256 * 2**20)


class Train(BaseModel):
    """How projectors are trained, for `jobs/train.py`: the flags of `batchproj train`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    projector: str = "mlp"
    modality: Modality | None = None
    test_fraction: float = Field(default=0.2, ge=0.01, le=0.9)
    seed: int = Field(default=0, ge=0)
    loss: Literal["info_nce", "sigmoid"] = "info_nce"
    workers: int | None = Field(default=None, ge=1)
    promote: bool = False


class Index(BaseModel):
    """When the table is indexed and tidied, inside a run and before it shows.

    From `min_rows` on the vectors get an approximate index; below, search is exact. The index is
    extended when more than `unindexed_rows` are not in it, and fragments are merged when more than
    `small_fragments` of the table are small. After the switch, versions that no run is kept by are
    removed when there are more than `spare_versions`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    min_rows: int = Field(default=50_000, ge=256)
    unindexed_rows: int = Field(default=1_000, ge=0)
    small_fragments: int = Field(default=64, ge=1)
    spare_versions: int = Field(default=100, ge=0)


class Recipe(BaseModel):
    """One file for a run: how it uses the machines, what it refuses, and which space it is for.

    `roots` are the folders, beside its own, that a table may name objects in, as paths or URLs.
    `sound_tracks` lists the sound of every object, row or member whose name promises a video as an item of
    its own, `<uri>#audio`, beside the video. Without it such items leave with the next run.
    `cpu_headroom` are logical CPUs of each node that encoders leave to the tasks that read: pools that take
    all of them starve these when a node is lost. `retry_s` is how long a store call is tried again before the run
    gives up, in seconds, `stall_s` how long a run goes on in which no worker gets anywhere. `space` is the one to embed
    with, unless a flag names another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    space: str | None = None
    limits: Limits = Limits()
    units: Units = Units()
    index: Index = Index()
    pools: dict[Modality, Pool] = Field(default_factory=dict)
    read: Tasks = Tasks()
    cpu_headroom: float = Field(default=0.5, ge=0)
    read_threads: int = Field(default=16, ge=1)
    retry_s: float = Field(default=180, gt=0)
    stall_s: float = Field(default=600, gt=0)
    roots: tuple[str, ...] = ()
    sound_tracks: bool = False
    train: Train = Train()

    @model_validator(mode="after")
    def _shares(self) -> Self:
        held = {pool.cpus is None for pool in self.pools.values()}
        if len(held) > 1:
            raise ValueError("some pools say the cpus of a worker and some do not: expected all of them, or none")
        return self


def load_recipe(path: str | None) -> Recipe:
    """Read a recipe by path or URL; the defaults without one. Raises SpaceError."""
    if path is None:
        return Recipe()
    canonical(path)  # refuses one with secrets, which the name's part may hold as well
    parent, _, name = path.rpartition("/")
    try:
        data = Folder(parent or ("/" if path.startswith("/") else ".")).read(name)
    except FileNotFoundError:
        raise SpaceError(f"no recipe at {path}; expected a YAML file") from None
    return validate(Recipe, read_yaml(data, f"recipe {path}"), f"recipe {path}")
