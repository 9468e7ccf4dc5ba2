"""Whether this machine is ready: each thing that a run stands on is tried, and what is wrong comes with its cure."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from batchproj import retry
from batchproj.accelerator import is_apart
from batchproj.errors import BatchprojError
from batchproj.fetching import cache_root
from batchproj.nodes import try_process
from batchproj.objectstore import Folder, canonical
from batchproj.pipeline import ray_session
from batchproj.queries import Example, QueryEncoder
from batchproj.schema import Modality
from batchproj.space import open_space, resolve
from batchproj.torch_runtime import is_slow_in_bf16

LIBRARIES = ("torch", "torchvision", "transformers", "timm", "ray", "lance", "lancedb", "pyarrow", "av", "soundfile")
"""Those that come apart: built for one another, for one CPU, or on a library of the system."""

LEAST_MEMORY_GIB = 4.0
"""Driver and one worker of the builtin space have 0.7 and 0.9 GiB, Ray's processes and its store the rest."""

LEAST_DISK_GIB = 5.0
"""Where models are kept: the largest of a shipped space has 3.3 GB."""

STORE_S = 10.0
"""How long a store is asked again: a run has more patience, and somebody waits here."""

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one look has found. A `note` stops no run; `advice` is what to do about it, or about a failure."""

    name: str
    state: State
    found: str
    advice: str | None = None


def examine(places: Sequence[str], verbose: bool = False) -> Iterator[Finding]:
    """Look at everything, and at each of `places`: folders or prefixes in which a collection shall be.

    One Finding after the other, as each takes some seconds; nothing stays behind.
    """
    retry.configure(STORE_S)
    looks: dict[str, Callable[[], Finding]] = {
        "machine": _machine,
        "libraries": _libraries,
        "arithmetic": _arithmetic,
        "cache": _cache,
        "encoders": _encoders,
        "ray": partial(_ray, verbose),
        **{place: partial(_place, place) for place in places},
    }
    for name, look in looks.items():
        try:
            yield look()
        except BatchprojError as error:
            yield Finding(name, "failed", _one_line(error))
        except Exception as error:  # whatever a library that does not work here raises is what was looked for
            traceback.print_exc()
            found = f"{type(error).__name__}: {_one_line(error)}"
            yield Finding(name, "failed", found, "with --verbose it is shown where it came from")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _machine() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = f"{cores} cores, {gib:.1f} GiB of memory, {', '.join(gpus) or 'no GPU'}"
    if gib < LEAST_MEMORY_GIB:
        return Finding("machine", "note", found, f"a run wants {LEAST_MEMORY_GIB:g} GiB and more")
    return Finding("machine", "ok", found)


def _libraries() -> Finding:
    versions, broken = [], []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except Exception as error:  # a build that does not fit raises what it likes
            broken.append(f"{name} ({type(error).__name__}: {_one_line(error)})")
    if broken:
        advice = "install batchproj into an empty environment, torch and torchvision in the same command"
        return Finding("libraries", "failed", f"cannot be imported: {'; '.join(broken)}", advice)
    return Finding("libraries", "ok", ", ".join(versions))


def _arithmetic() -> Finding:
    if is_apart():
        return Finding("arithmetic", "ok", "bf16 on the GPU")
    if is_slow_in_bf16():
        found = "this CPU has no instructions for bf16, so that it is computed in fp32: the same space, more time"
        return Finding("arithmetic", "note", found, "a CPU with AVX512-BF16 or AMX, or a GPU, is several times as fast")
    return Finding("arithmetic", "ok", "bf16 on the CPU")


def _cache() -> Finding:
    root = cache_root()
    folder = Folder(str(root))
    folder.check_create()
    gib = shutil.disk_usage(root).free / 2**30
    if gib < LEAST_DISK_GIB:
        advice = "make room for models that are fetched, or set BATCHPROJ_CACHE to another disk"
        return Finding("cache", "note", f"{gib:.1f} GiB free under {root}", advice)
    return Finding("cache", "ok", f"{gib:,.0f} GiB free under {root}")


def _encoders() -> Finding:
    """Decoders, encoders and projectors of every modality of the builtin space."""
    encoder, space = QueryEncoder(), resolve(open_space("builtin"))
    examples = {
        Modality.TEXT: Example(Modality.TEXT, text="a red square"),
        Modality.IMAGE: Example(Modality.IMAGE, data=_picture(), name="a picture"),
        Modality.AUDIO: Example(Modality.AUDIO, data=_sound(), name="a sound"),
    }
    made = [str(modality) for modality, member in space.members.items() if modality in examples]
    for modality in made:
        encoder.vector(space.members[Modality(modality)], examples[Modality(modality)])
    return Finding("encoders", "ok", f"the builtin space has embedded {', '.join(made)}, {space.dim} dimensions each")


def _picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def _sound() -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(16_000) / 10).astype(np.float32), 16_000, format="WAV")
    return file.getvalue()


def _ray(verbose: bool) -> Finding:
    with ray_session(verbose):
        where = os.environ.get("RAY_ADDRESS", "a Ray of its own")
        return Finding("ray", "ok", f"{where}: {try_process()}")


def _place(place: str) -> Finding:
    """Nothing but one small file is written there, and removed."""
    path = Path(canonical(place).removeprefix("file://"))
    made = [] if "://" in str(path) else [each for each in (path, *path.parents) if not each.exists()]
    try:
        keeps_apart = Folder(place).check_create()
    finally:
        for each in made:
            if each.exists():
                each.rmdir()
    if not keeps_apart:
        advice = "use another store, or see to it that one run writes at a time and say so: embed --single-writer"
        return Finding(place, "note", "can be written, and ignores put-if-absent (If-None-Match)", advice)
    return Finding(place, "ok", "can be written, and keeps two runs apart")
