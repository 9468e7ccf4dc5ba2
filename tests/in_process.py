"""Runs without Ray: the pipeline's own stages, one unit after the other in this process."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import batchproj
from batchproj import cli, execution, pools, stages
from batchproj import embed as module_embed
from batchproj.collection.ledger import Report
from batchproj.collection.unit import Receipt, Unit
from batchproj.embed import Options, Watch, embed
from batchproj.news import News, OnNews
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality
from batchproj.space import ResolvedSpace, open_space, resolve
from batchproj.stages import Job
from batchproj.unit_row import unit_row

OPTIONS = Options(Recipe(units=Units(max_items=8), read_threads=2))

_actors: dict[tuple[object, ...], stages.Embedding] = {}
"""Loaded models; their vectors depend on nothing but the member's fingerprint, what else they do on the rest of the
key."""


class _Unheard:
    """In the place of the desk's actor."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: None)


def _run_units(job: Job, units: list[Unit], on_news: OnNews) -> Iterator[Receipt]:
    desk = _Unheard()
    for (task, modality), group in pools.by_pool(job, units).items():
        work = _projecting(job, modality, desk) if task == "project" else _embedding(job, modality, len(group), desk)
        for unit in group:
            batch = work(unit_row(unit))
            yield Receipt.model_validate_json(batch["receipt"][0].as_py())
    on_news(News({}, 0, [], 0, [], 0))


_Work = Callable[[pa.Table], pa.Table]


def _projecting(job: Job, modality: Modality | None, desk: Any) -> _Work:
    assert modality is not None, "what is projected has an encoder"
    return stages.Projecting(job, modality, pool=1, desk=desk)


def _embedding(job: Job, modality: Modality | None, units: int, desk: Any) -> _Work:
    key = (job.members[modality].vector_fp if modality else None, job.dim, job.in_space, job.recipe.limits)
    if key not in _actors:
        _actors[key] = stages.Embedding(job, modality, threads=2, pool=1, units=units, desk=desk, has_own_process=False)
    actor, read = _actors[key], stages.Reader(job, desk)
    actor._job, actor._desk = job, desk  # its model is the same, where it writes is not
    actor._measuring = stages._Measuring(units)
    return lambda batch: actor(read(batch))


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Every run inside is done in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(execution, "is_small", lambda *_: False)
        patched.setattr(execution, "run_units", _run_units)
        patched.setattr(execution, "ray_session", lambda _: contextlib.nullcontext())
        yield


@contextlib.contextmanager
def stopped_when_its_units_are_done() -> Iterator[None]:
    """The one run inside is stopped, as by a signal, before it commits anything."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module_embed, "_commit", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A `batchproj` command in this process, as `batchproj.cli.main` runs it, but for the signals' handlers and the
    end of the process. What the terminal shows of the progress is not caught."""
    arguments = tuple(map(str, arguments))
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            with without_ray():
                cli.app(arguments)
        except BaseException as error:
            code = cli._exit_code(error)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), said.getvalue())


@functools.cache
def resolved(space: Path) -> ResolvedSpace:
    return resolve(open_space(str(space)))


def run(source: object, collection: object, space: Path, options: Options = OPTIONS) -> Report:
    return embed(str(source), str(collection), resolved(space), options, Watch())


def once(made: Path, target: Path, make: Callable[[Path], object]) -> Path:
    """A copy of what `make` has put into a folder, which is done the first time only."""
    if not made.exists():
        make(new := made.with_suffix(".new"))
        new.rename(made)
    shutil.copytree(made, target)
    return target


def vectors(collection: object) -> dict[str, bytes]:
    """Bytes of every live vector, by URI."""
    table = batchproj.open(str(collection)).table()
    found = zip(table["uri"].to_pylist(), table["vector"].to_pylist(), strict=True)
    return {uri: np.float32(vector).tobytes() for uri, vector in found}


def quiet(_: str) -> None:
    """Progress is not looked at here."""
