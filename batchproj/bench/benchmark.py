"""All of it: for each workload its corpus, the reference, parity, and then the rounds."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import batchproj
from batchproj.bench import cached, machine, workloads
from batchproj.bench.calibration import calibrate
from batchproj.bench.contender import FEATURES, Job, Window
from batchproj.bench.contenders import CEILING, CONTENDERS, DEFAULT, Contender
from batchproj.bench.figures import Figures, Needs, figures, raw
from batchproj.bench.parity import Parity, compare
from batchproj.bench.rounds import Round, run_rounds, start_process
from batchproj.bench.workloads import Corpus, Workload, expected_ids
from batchproj.errors import BatchprojError, UsageError
from batchproj.schema import Modality

_PACKAGES = ("torch", "transformers", "timm", "ctranslate2", "ray", "daft", "sentence-transformers", "pillow")

Say = Callable[[str], None]


class Result(BaseModel):
    """One workload: figures by contender, and all that was measured; or why it was not (`missing`)."""

    workload: str
    about: str
    modality: str
    items: int
    missing: str | None = None
    flops: int | None = None
    contenders: dict[str, Figures] = {}
    valid: int = 0
    void: int = 0
    rounds: list[dict[str, Any]] = []


class Document(BaseModel):
    """What `bench --json` prints and the dated file holds."""

    version: str
    corpus_version: int
    started: str
    machine: dict[str, Any]
    packages: dict[str, str]
    price: float | None
    results: list[Result]


class Settings(BaseModel):
    """How much of it: `items` of each workload at most, `price` of an hour of this machine."""

    rounds: int = 5
    items: int | None = None
    price: float | None = None


def benchmark(chosen: list[Workload], contenders: list[Contender], settings: Settings, say: Say) -> Iterator[Document]:
    """Measure; the document after each workload, for it takes hours.

    A workload whose reference or ceiling cannot be run is left out, and so is a contender that fails.
    """
    document = Document(
        version=batchproj.__version__,
        corpus_version=workloads.VERSION,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={"cores": machine.cores(), "processor": _processor(), "python": platform.python_version()},
        packages=_versions(),
        price=settings.price,
        results=[],
    )
    cache = workloads.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    for workload in chosen:
        items = min(workload.items, settings.items or workload.items)
        result = Result(workload=workload.name, about=workload.about, modality=workload.modality, items=items)
        try:
            with tempfile.TemporaryDirectory(prefix="work-", dir=cache) as work:
                measured = _measure(workload, items, contenders, settings, Path(work), say)
            document.results.append(result.model_copy(update=measured))
        except BatchprojError as error:
            say(f"{workload.name} is left out: {error}")
            document.results.append(result.model_copy(update={"missing": str(error)}))
        yield document


def _measure(
    workload: Workload, items: int, contenders: list[Contender], settings: Settings, work: Path, say: Say
) -> dict[str, Any]:
    """What there is to say of a workload: fields of its Result."""
    say(f"{workload.name}: preparing {items:,} items ({workload.about})")
    make = cached.prepare if workload.is_reprojection else workloads.prepare
    corpus = make(workload, items, workloads.cache_folder())
    found: dict[str, Figures] = {}
    with _source(corpus) as source:
        bench = _Bench(corpus, source, work, say)
        fit = bench.fit(contenders, found)
        flops = bench.flops()
        rounds, failed = run_rounds(
            fit,
            settings.rounds,
            bench.start,
            calibrate,
            lambda number, each: say(_line(workload, number, each, items)),
        )
    needs = Needs(items=items, flops=flops, price=settings.price)
    for name in (contender.name for contender in fit):
        cosine = found[name].cosine
        found[name] = Figures(missing=failed[name]) if name in failed else figures(rounds, name, needs)
        found[name] = found[name].model_copy(update={"cosine": cosine})
    return {
        "flops": flops,
        "contenders": {contender.name: found[contender.name] for contender in contenders},
        "valid": sum(not each.void for each in rounds),
        "void": sum(each.void for each in rounds),
        "rounds": raw(rounds),
    }


@contextlib.contextmanager
def _source(corpus: Corpus) -> Iterator[str]:
    """Where contenders read it from."""
    if corpus.workload.is_reprojection:
        yield str(corpus.folder / "items.parquet")
    elif not corpus.workload.on_s3:
        yield str(corpus.files)
    else:
        try:
            metadata.version("moto")
        except metadata.PackageNotFoundError:
            raise UsageError(f"{corpus.workload.name} needs moto: pip install 'batchproj[bench]'") from None
        from batchproj.bench.store import store_with

        with store_with(corpus.files) as prefix:
            yield prefix


class _Bench:
    """One workload at the place that contenders read it from."""

    def __init__(self, corpus: Corpus, source: str, work: Path, say: Say) -> None:
        self._corpus, self._source, self._work, self._say = corpus, source, work, say
        self._references: dict[Window, Path] = {}

    def job(self, name: str, window: Window) -> Job:
        workload, folder = self._corpus.workload, self._corpus.folder
        return Job(
            workload=workload.name,
            modality=workload.modality,
            source=self._source,
            manifest=self._corpus.manifest,
            out=self._work / name,
            cores=machine.cores(),
            window=window,
            collection=folder / "collection" if workload.is_reprojection else None,
            space=folder / "after" / "space.yaml" if workload.is_reprojection else None,
        )

    def start(self, contender: Contender) -> Any:
        return start_process(contender, self.job(contender.name, contender.window))

    def fit(self, contenders: list[Contender], found: dict[str, Figures]) -> list[Contender]:
        """Those that give the right vectors; of the others `found` says why they are not timed."""
        fit = []
        for contender in contenders:
            parity = self._parity(contender)
            found[contender.name] = Figures(missing=parity.problem, cosine=parity.cosine)
            if parity.problem is None:
                fit.append(contender)
                said = f"has the right vectors, least cosine {parity.cosine:.4f}"
            else:
                said = f"is left out: {parity.problem}"
            self._say(f"{self._corpus.workload.name}: {contender.name} {said}")
            if parity.problem is not None and contender.name == CEILING:
                raise BatchprojError(f"{CEILING} is what all are compared with, and is left out: {parity.problem}")
        return fit

    def _parity(self, contender: Contender) -> Parity:
        workload = self._corpus.workload
        if reason := contender.why_not(workload):
            return Parity(None, reason)
        window = contender.window if workload.modality is Modality.AUDIO else "padded"  # nothing else has one
        features = reference = self._reference(window)
        if contender != self._by:
            features = self._work / contender.name / FEATURES
            try:
                self.start(contender)
            except BatchprojError as error:
                return Parity(None, str(error))
        return compare(features, reference, expected_ids(self._corpus.manifest), workload.modality)

    @property
    def _by(self) -> Contender:
        """Who makes the reference: the usual loop, in fp32; of what is projected again, the loop by hand."""
        return CONTENDERS[CEILING if self._corpus.workload.is_reprojection else DEFAULT]

    def _reference(self, window: Window) -> Path:
        """Features in fp32, of the same preprocessing."""
        if window not in self._references:
            self._say(f"{self._corpus.workload.name}: the reference in fp32")
            by = self._by
            job = self.job(f"reference-{window}", window)
            start_process(by, job)
            self._references[window] = job.out / FEATURES
        return self._references[window]

    def flops(self) -> int | None:
        """FLOPs of the workload, counted in a process of its own; None for what has no model."""
        if self._corpus.workload.is_reprojection:
            return None
        file = self._work / "job.json"
        file.write_text(self.job("flops", "real").model_dump_json())
        command = [sys.executable, "-m", "batchproj.bench.flops", str(file)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
        )
        if done.returncode:
            raise BatchprojError(f"FLOPs were not counted: {' '.join(done.stderr.split())[-300:]}")
        return int(done.stdout.split()[-1])


def _line(workload: Workload, number: int, each: Round, items: int) -> str:
    """A line of progress: speeds of the round relative to the ceiling's."""
    ceiling = each.runs[CEILING].steady_s
    parts = [f"{name} {ceiling / run.steady_s:.2f}" for name, run in each.runs.items() if name != CEILING]
    void = ", void: the machine was busy" if each.void else ""
    told = f"{CEILING} {items / ceiling:,.0f} items/s; of that: {', '.join(parts)}" if parts else CEILING
    return f"{workload.name}: round {number}: {told}{void}"


def _processor() -> str:
    """The model's name as the kernel tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def require_writable(out: Path) -> None:
    """Make the folder; UsageError if nothing can be written there: before hours of work, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise UsageError(f"--out {out} cannot be written to ({said}); expected a folder of yours") from error


def save(document: Document, out: Path) -> Path:
    """Write the document under its date; the file."""
    stamp = document.started.replace(":", "").replace("-", "").partition("+")[0]
    file = out / f"bench-{stamp}.json"
    file.write_text(json.dumps(document.model_dump(mode="json"), indent=1))
    return file
