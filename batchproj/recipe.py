"""A recipe: one file that says how a run uses the machine and where its limits are."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from batchproj.config import read_yaml, validate
from batchproj.decode.limits import Limits
from batchproj.errors import SpaceError
from batchproj.objectstore import Folder, canonical
from batchproj.schema import Modality


class Pool(BaseModel):
    """Encoder workers of one modality; unset fields are sized to the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    gpus: float = Field(default=0, ge=0)


class Units(BaseModel):
    """How large a unit of work may get; a crash loses at most the units in the workers' hands."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_items: int = Field(default=512, ge=1, le=1024)
    max_bytes: int = Field(default=64 * 2**20, ge=1, le=256 * 2**20)


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
    """Everything about a run that does not change a vector.

    `roots` are the folders, beside its own, that a table may name objects in, as paths or URLs.
    `sound_tracks` lists the sound of every object, row or member whose name promises a video as an item of
    its own, `<uri>#audio`, beside the video. Without it such items leave with the next run.
    `retry_s` is how long a store call is tried again before the run gives up, in seconds, `stall_s` how long a run
    goes on in which no worker gets anywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    limits: Limits = Limits()
    units: Units = Units()
    index: Index = Index()
    pools: dict[Modality, Pool] = Field(default_factory=dict)
    read_threads: int = Field(default=16, ge=1)
    retry_s: float = Field(default=180, gt=0)
    stall_s: float = Field(default=600, gt=0)
    roots: tuple[str, ...] = ()
    sound_tracks: bool = False


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
