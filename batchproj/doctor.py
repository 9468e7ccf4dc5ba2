"""Whether this machine is ready: each thing that a run stands on is tried, and what is wrong comes with its cure.

What may be broken is imported by the look that looks at it.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from batchproj import retry
from batchproj.credentials import masked
from batchproj.errors import BatchprojError, TryLater

LIBRARIES = ("torch", "torchvision", "transformers", "timm", "ray", "lance", "lancedb", "av", "soundfile")
"""Those that come apart: built for one another, for one CPU, or on a library of the system."""

LEAST_MEMORY_GIB = 4.0
"""Driver and worker of the builtin space take 1.2 to 2.6, Ray's processes the rest."""

CGROUP = Path("/sys/fs/cgroup")
"""Where the kernel says what a container is allowed, as one sees it from inside."""

LEAST_DISK_GIB = 2.0
"""The largest model of a shipped space has 1.5 GB (`batchproj encoders`)."""

STORE_S = 10.0
"""How long a store is asked again: a run has more patience, and somebody waits here."""

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one look has found. A `note` stops no run; `advice` is what to do, where `found` does not say so itself.

    `is_later`: what failed is away, and may be there later.
    """

    name: str
    state: State
    found: str
    advice: str | None = None
    is_later: bool = False


def examine(places: Sequence[str], verbose: bool = False) -> Iterator[Finding]:
    """Look at everything, and at each of `places`: folders or prefixes in which a collection shall be.

    One Finding after the other, as each takes some seconds; none but the first where libraries are broken. Nothing
    stays in `places`.
    """
    before = retry.patience_s()
    retry.configure(STORE_S)
    try:
        yield (libraries := _looked("libraries", _libraries))
        if libraries.state == "failed":
            return
        for name, look in (("machine", _machine), ("arithmetic", _arithmetic), ("cache", _cache)):
            yield _looked(name, look)
        yield _looked("encoders", _encoders)
        yield _looked("ray", partial(_ray, verbose))
        for place in places:
            yield _looked(masked(place), partial(_place, place))
    finally:
        retry.configure(before)


def _looked(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except BatchprojError as error:
        return Finding(name, "failed", _one_line(error), is_later=isinstance(error, TryLater))
    except Exception as error:  # whatever a library that does not work here raises is what was looked for
        traceback.print_exc()
        found = f"{type(error).__name__}: {_one_line(error)}"
        return Finding(name, "failed", found, "with --verbose it is shown where it came from")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _machine() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib = _memory_bytes() / 2**30
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = f"{cores} cores, {gib:.1f} GiB of memory, {', '.join(gpus) or 'no GPU'}"
    if gib < LEAST_MEMORY_GIB:
        return Finding("machine", "note", found, f"a run wants {LEAST_MEMORY_GIB:g} GiB and more")
    return Finding("machine", "ok", found)


def _memory_bytes() -> int:
    """The machine's memory, or what its container is allowed by cgroup 2 or 1; limits of groups above it are not seen.

    Where there is no limit, the one has no number there and the other one larger than any machine.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int((CGROUP / name).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


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
    from batchproj.accelerator import is_apart
    from batchproj.torch_runtime import is_slow_in_bf16

    if is_apart():
        return Finding("arithmetic", "ok", "bf16 on the GPU")
    if is_slow_in_bf16():
        found = "this CPU has no instructions for bf16, so that it is computed in fp32: the same space, more time"
        return Finding("arithmetic", "note", found, "a CPU with AVX512-BF16 or AMX, or a GPU, is several times as fast")
    return Finding("arithmetic", "ok", "bf16 on the CPU")


def _cache() -> Finding:
    """Where models that are fetched are kept; nothing is made there."""
    from batchproj.fetching import cache_root

    root = cache_root()
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    gib = shutil.disk_usage(there).free / 2**30
    found, advice = f"{gib:,.1f} GiB free under {root}", "set BATCHPROJ_CACHE to a disk with room"
    if not os.access(there, os.W_OK):
        return Finding("cache", "note", f"{root} may not be written, so that no model can be fetched", advice)
    return Finding("cache", "ok", found) if gib >= LEAST_DISK_GIB else Finding("cache", "note", found, advice)


def _encoders() -> Finding:
    """A text, a PNG and a WAV through the builtin space's decoders, encoders and projectors."""
    from batchproj.queries import Example, QueryEncoder
    from batchproj.schema import Modality
    from batchproj.space import open_space, resolve

    encoder, space = QueryEncoder(), resolve(open_space("builtin"))
    examples = {
        Modality.TEXT: Example(Modality.TEXT, text="a red square"),
        Modality.IMAGE: Example(Modality.IMAGE, data=_picture(), name="a picture"),
        Modality.AUDIO: Example(Modality.AUDIO, data=_sound(), name="a sound"),
    }
    for modality, member in space.members.items():
        encoder.vector(member, examples[modality])
    made = ", ".join(space.members)
    return Finding("encoders", "ok", f"the builtin space has embedded {made}, {space.dim} dimensions each")


def _picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def _sound() -> bytes:
    import numpy as np
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(16_000) / 10).astype(np.float32), 16_000, format="WAV")
    return file.getvalue()


def _ray(verbose: bool) -> Finding:
    from batchproj.nodes import check_nodes, try_process
    from batchproj.pipeline import ray_session

    with ray_session(verbose):
        check_nodes([])
        return Finding("ray", "ok", f"{os.environ.get('RAY_ADDRESS', 'a Ray of its own')}: {try_process()}")


def _place(place: str) -> Finding:
    """One small file is written there, and removed, and so are folders that were not there."""
    from batchproj.objectstore import Folder, canonical

    uri = canonical(place)
    path = Path(uri.removeprefix("file://"))
    made = [each for each in (path, *path.parents) if not each.exists()] if uri.startswith("file://") else []
    try:
        keeps_apart = Folder(place).check_create()
    except FileNotFoundError as error:
        return Finding(place, "failed", _one_line(error), "create the bucket, or look at its name and AWS_ENDPOINT_URL")
    finally:
        with suppress(OSError):  # somebody else has put something there by now
            for each in made:
                each.rmdir()
    if not keeps_apart:
        advice = "use another store, or see to it that one run writes at a time and say so: embed --single-writer"
        return Finding(place, "note", "can be written, and ignores put-if-absent (If-None-Match)", advice)
    return Finding(place, "ok", "can be written, and keeps two runs apart")
