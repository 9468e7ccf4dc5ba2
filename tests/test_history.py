"""Random histories of a source and its collection, against a model that knows what has to come of them.

The code is the real one: listing, plan, units, commit, lease, Parquet, Lance, a tiny CLIP. Only Ray is
left out: its stages are called one after the other here. A killed run is one that is stopped at a
failpoint or at any write to the store; from there on nothing of it writes any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from in_process import without_ray
from PIL import Image
from runs import live_rows

from batchproj import objectstore
from batchproj.collection import manifest
from batchproj.collection.lease import Record
from batchproj.collection.ledger import Report
from batchproj.collection.unit import Unit
from batchproj.decoding import Fetched
from batchproj.embed import Options, Watch, embed
from batchproj.embedding import UnitWorker
from batchproj.errors import CollectionError, SourceError, UsageError
from batchproj.gc import gc
from batchproj.objectstore import Folder
from batchproj.project import linear
from batchproj.recipe import Index, Recipe, Units
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.source import reading
from batchproj.space import Member, ResolvedSpace, open_space, resolve
from batchproj.switch import rollback
from batchproj.tags import Tags

THREADS = 2

# --- what there is to embed --------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """Bytes of an object; `kind` is what they are found to be, `fault` why they cannot be embedded."""

    data: bytes = field(repr=False)
    kind: Modality | None
    fault: str | None = None

    def under(self, path: str) -> Content:
        """The same under a name: words under a picture's name are taken for an error page."""
        if self.kind is Modality.TEXT and promised(path) is Modality.IMAGE:
            return Content(self.data, None, "wrong_type")
        return self


def promised(path: str) -> Modality | None:
    return {".txt": Modality.TEXT, ".png": Modality.IMAGE}.get(Path(path).suffix)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((40, 36)).save(sink, "BMP")  # all of one size
    return sink.getvalue()


CONTENTS = {
    "words": Content(" ".join(WORDS[1:5]).encode(), Modality.TEXT),
    "words of that size": Content(" ".join(WORDS[5:9]).encode(), Modality.TEXT),
    "more words": Content(" ".join(WORDS[2:9]).encode(), Modality.TEXT),
    "picture": Content(picture(1), Modality.IMAGE),
    "another picture": Content(picture(2), Modality.IMAGE),
    "half a picture": Content(picture(1)[:900], Modality.IMAGE, "truncated"),
    "nothing": Content(b"", None, "empty"),
}
PATHS = ["a.txt", "b.txt", "c.png", "d/e.png", "d/f", "g.txt"]

# --- the spaces --------------------------------------------------------------------------------

SPACES = ["tiny", "projector", "encoder"]


def features_by(space: str, kind: Modality | None) -> str:
    """What the features of a kind are made by, in a space."""
    return "fp32" if (space, kind) == ("encoder", Modality.IMAGE) else "usual"


def vectors_by(space: str, kind: Modality | None) -> str:
    return space if kind is Modality.IMAGE else "tiny"


@pytest.fixture(scope="module")
def spaces(tiny_space: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedSpace]:
    """The tiny space, one with a projector for pictures, and one with another encoder for them."""
    folder = tmp_path_factory.mktemp("spaces")
    name, dim, text, image, *_ = tiny_space.read_text().splitlines()
    torch.manual_seed(7)
    linear.Config(in_dim=24, out_dim=24).build().save(folder / "image.safetensors")
    projected = image.removesuffix("}") + ", projector: {kind: linear, weights: image.safetensors}}"
    documents = {
        "tiny": [name, dim, text, image],
        "projector": [name, dim, text, projected],
        "encoder": [name, dim, text, image.replace("kind: clip,", "kind: clip, dtype: fp32,")],
    }
    for space, lines in documents.items():
        (folder / f"{space}.yaml").write_text("\n".join(lines))
    return {space: resolve(open_space(str(folder / f"{space}.yaml"))) for space in SPACES}


class Encoders:
    """What the vectors are that runs are held against; every model is loaded once."""

    def __init__(self, spaces: dict[str, ResolvedSpace]) -> None:
        self.spaces = spaces
        self._workers: dict[tuple[str, Modality], UnitWorker] = {}
        self._vectors: dict[tuple[str, str, Content], bytes] = {}

    def vector(self, space: str, path: str, content: Content) -> bytes:
        """The vector of an object embedded all by itself."""
        kind = content.kind
        assert kind is not None
        by = vectors_by(space, kind)
        if (by, path, content) not in self._vectors:
            unit = Unit(name="x", run="x", task="embed", modality=kind, items=1, bytes=len(content.data))
            item = Fetched("x", path, None, "x", content.data, "x", path)
            rows = self._worker(by, kind).embed(unit, [item], None, lambda _: None).vectors
            self._vectors[by, path, content] = np.float32(rows["vector"][0].as_py()).tobytes()
        return self._vectors[by, path, content]

    def _worker(self, space: str, kind: Modality) -> UnitWorker:
        if (space, kind) not in self._workers:
            of = self.spaces[space]
            worker = UnitWorker(of.members[kind], of.dim, frozenset(of.members), Recipe().limits, THREADS)
            worker.load()
            self._workers[space, kind] = worker
        return self._workers[space, kind]


# --- stopping a run anywhere -------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches this, as nothing catches kill -9."""


@dataclass
class Killer:
    """Stops a run at a failpoint, or before its nth write; sees what was written until then."""

    at: str | int | None = None
    writes: int = 0
    is_dead: bool = False
    has_settled: bool = False  # readers were pointed to what another had committed
    has_untagged: bool = False  # runs that are collected can no longer be shown
    committed: str | None = None  # the run that a record of the log makes the standing one
    is_shown: bool = False  # and readers were pointed to its version

    def reach(self, name: str) -> None:
        if name == self.at:
            self.is_dead = True
        self._end_if_dead()

    def before_write(self) -> None:
        self.writes += 1
        if self.writes == self.at:
            self.is_dead = True
        self._end_if_dead()

    def _end_if_dead(self) -> None:
        if self.is_dead:
            raise Killed(self.at)

    def after_create(self, name: str, data: bytes) -> None:
        if name.startswith("log/") and (record := Record.model_validate_json(data)).kind != "lease":
            self.committed = record.run


@contextlib.contextmanager
def watched_by(killer: Killer) -> Iterator[None]:
    """Every failpoint and every write of this process passes by the killer; heartbeats do not."""

    def write(wrapped: Callable[..., Any], folder: Folder, *arguments: Any) -> Any:
        if threading.current_thread().name == "batchproj-lease":
            return wrapped(folder, *arguments)
        killer.before_write()
        result = wrapped(folder, *arguments)
        if wrapped.__name__ == "create":
            killer.after_create(*arguments)
        return result

    def point(wrapped: Callable[..., None], tags: Tags, *arguments: Any) -> None:
        killer.before_write()
        wrapped(tags, *arguments)
        if killer.committed is None:
            killer.has_settled = True
        else:
            killer.is_shown = True

    def keep(wrapped: Callable[..., None], tags: Tags, *arguments: Any) -> None:
        killer.before_write()
        wrapped(tags, *arguments)

    def drop(wrapped: Callable[..., None], tags: Tags, runs: set[str]) -> None:
        killer.before_write()
        wrapped(tags, runs)
        killer.has_untagged = True

    with pytest.MonkeyPatch.context() as patch:
        for module in [module for name, module in sys.modules.items() if name.startswith("batchproj.")]:
            if callable(getattr(module, "failpoint", None)):
                patch.setattr(module, "failpoint", killer.reach)
        for name in ("write", "create", "remove", "upload"):
            original = getattr(Folder, name)
            patch.setattr(Folder, name, lambda self, *given, to=original: write(to, self, *given))
        shown = Tags.point
        patch.setattr(Tags, "point", lambda self, *given: point(shown, self, *given))
        kept = Tags.keep
        patch.setattr(Tags, "keep", lambda self, *given: keep(kept, self, *given))
        dropped = Tags.drop
        patch.setattr(Tags, "drop", lambda self, runs: drop(dropped, self, runs))
        yield


FAILPOINTS = [
    *("unit.features", "unit.part", "unit.outcome", "unit.done"),
    *("commit.parts", "commit.manifest", "commit.deleted", "commit.added", "commit.indexed", "commit.checked"),
    *("commit.snapshot", "commit.ledger", "commit.recorded", "commit.tagged", "commit.live"),
    *("gc.tags", "gc.ledger", "gc.snapshots", "gc.parquet", "gc.features", "gc.units", "gc.table"),
]

# --- the model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Object:
    content: Content
    mtime_ns: int

    @property
    def version(self) -> tuple[int, int]:
        return len(self.content.data), self.mtime_ns


@dataclass(frozen=True)
class State:
    """What a run has left: every object as it was listed, and the run that made its vectors."""

    run: str
    parent: str | None
    space: str
    objects: dict[str, Object]
    made_in: dict[str, str]

    def contents(self, path: str) -> Content:
        return self.objects[path].content.under(path)


@dataclass(frozen=True)
class Expected:
    """What a run has to do with each object, and what that costs."""

    actions: dict[str, str]
    gone: set[str]
    counts: Counter[str]
    encodes: Counter[str]
    reads: Counter[str]
    commits: bool


def expect(live: State | None, later: list[State], objects: dict[str, Object], space: str) -> Expected:
    """The whole promise of a run; `later` are kept runs after the live one, which were rolled back."""
    known_to = [live, *later] if live else []
    before = live.objects if live else {}
    actions = {path: action(live, path, each, space) for path, each in objects.items()}
    counts: Counter[str] = Counter()
    encodes: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    gone = {path for path in before if path not in objects}
    commits = bool(gone) or live is None
    for path, what in actions.items():
        content = objects[path].content.under(path)
        commits |= what not in ("unchanged", "quarantined")
        if what not in ("new", "changed", "encode", "retry"):
            counts[{"project": "reprojected"}.get(what, what)] += 1
            continue
        known = live.contents(path).kind if live and path in before else None
        misnamed = content.kind is not None and content.kind != (known or promised(path))
        reads[path] += 1 + misnamed  # once more in the pool of what it turns out to be
        if content.fault is not None:
            counts["quarantined"] += 1
        elif any(has_features(state, content, space) for state in known_to):
            counts["copied"] += 1
        else:
            counts["embedded"] += 1
            encodes[str(content.kind)] += 1
    return Expected(actions, gone, counts, encodes, reads, commits)


def action(live: State | None, path: str, listed: Object, space: str) -> str:
    if live is None or path not in live.objects:
        return "new"
    content = live.contents(path)
    if live.objects[path].version != listed.version:
        return "changed"
    if features_by(live.space, content.kind) != features_by(space, content.kind):
        return "encode"
    if content.fault is not None:
        # nobody knows what it is: another encoder of what its name promises, of anything without, may try
        kinds = [content.kind or promised(path)] if content.kind or promised(path) else list(Modality)
        is_other = any(features_by(live.space, kind) != features_by(space, kind) for kind in kinds)
        return "retry" if is_other else "quarantined"
    return "project" if vectors_by(live.space, content.kind) != vectors_by(space, content.kind) else "unchanged"


def has_features(state: State, content: Content, space: str) -> bool:
    same_encoder = features_by(state.space, content.kind) == features_by(space, content.kind)
    return same_encoder and any(state.contents(path) == content for path in state.objects)


# --- the machine -------------------------------------------------------------------------------

paths = st.sampled_from(PATHS)
kills = st.one_of(st.sampled_from(FAILPOINTS), st.integers(1, 50))
Change = tuple[str, str, str, str]
changes = st.tuples(
    st.sampled_from(["put", "touch", "rename", "copy", "delete"]), paths, paths, st.sampled_from(sorted(CONTENTS))
)
ways = st.fixed_dictionaries(
    {
        "space": st.sampled_from([*SPACES, "tiny"]),
        "max_items": st.sampled_from([8, 1, 4]),
        "small_fragments": st.sampled_from([64, 1]),
    }
)


class History(RuleBasedStateMachine):
    """Objects come, change and go; runs succeed, die and are taken back."""

    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.encoders = encoders
        self.folder = Path(tempfile.mkdtemp(prefix="batchproj-history-"))
        self.source = self.folder / "source"
        self.source.mkdir()
        self.collection = self.folder / "c"
        self.clock = 1_700_000_000 * 10**9
        self.objects: dict[str, Object] = {}
        self.committed: list[str] = []
        self.kept: dict[str, State] = {}  # and not collected since
        self.visible: State | None = None
        self.standing: State | None = None  # as the log has it; readers follow with the next writer
        self.was_killed = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # what happens to the source

    @initialize(names=st.lists(st.sampled_from(sorted(CONTENTS)), min_size=len(PATHS), max_size=len(PATHS)))
    def begin(self, names: list[str]) -> None:
        for path, name in zip(PATHS, names, strict=True):
            self._place(path, CONTENTS[name], self._now())

    # what happens to the collection

    @rule(changes=st.lists(changes, max_size=3), way=ways, at=st.one_of(st.none(), kills))
    def run(self, changes: list[Change], way: dict[str, Any], at: str | int | None) -> None:
        self._change(changes)
        self._run(way, Killer(at))

    @rule(changes=st.lists(changes, max_size=3), way=ways)
    def run_that_may_not_delete_much(self, changes: list[Change], way: dict[str, Any]) -> None:
        self._change(changes)
        live = self.standing
        gone = {path for path in live.objects if path not in self.objects} if live else set()
        new = {each.version for path, each in self.objects.items() if not (live and path in live.objects)}
        lost = sum(live.objects[path].version not in new for path in gone) if live else 0
        if live is None or lost <= 0.2 * len(live.objects):
            self._run(way, Killer(), may_delete=False)
            return
        with pytest.raises(UsageError, match="--allow-mass-delete"):
            self._embed(way, Killer(), may_delete=False)
        self.visible = live

    @precondition(lambda self: self.visible)
    @rule(data=st.data(), at=st.one_of(st.none(), kills), by_default=st.booleans())
    def rollback(self, data: st.DataObject, at: str | int | None, by_default: bool) -> None:
        killer = Killer(at)
        run = None if by_default else data.draw(st.sampled_from(sorted(self.kept)))
        live = self.standing
        assert live is not None
        target = self.kept.get(run or live.parent or "")
        try:
            with watched_by(killer):
                rollback(str(self.collection), run, lambda _: None)
        except Killed:
            self._died(killer, target)
        except CollectionError:
            assert target is None
            self.visible = live
        else:
            self.standing = self.visible = target

    @precondition(lambda self: self.visible)
    @rule(keep=st.integers(1, 3), at=st.one_of(st.none(), kills))
    def gc(self, keep: int, at: str | int | None) -> None:
        killer = Killer(at)
        live = self.standing
        assert live is not None
        others = sorted(set(self.kept) - {live.run}, reverse=True)[: keep - 1]
        try:
            with watched_by(killer):
                gc(str(self.collection), lambda _: None, keep, apply=True)
        except Killed:
            self._died(killer, None)
        else:
            self.visible = live
        if not killer.is_dead or killer.has_untagged:
            self.kept = {run: self.kept[run] for run in [live.run, *others]}

    @invariant()
    def readers_see_one_whole_run(self) -> None:
        if self.visible is None:
            with pytest.raises(CollectionError):
                Collection(str(self.collection))
            return
        state = self.visible
        assert Collection(str(self.collection)).run == state.run
        rows = {
            row["uri"].removeprefix(f"file://{self.source}/"): row for row in live_rows(self.collection).to_pylist()
        }
        embedded = {path for path in state.objects if state.contents(path).fault is None}
        assert rows.keys() == embedded
        for path, row in rows.items():
            content = state.contents(path)
            assert np.float32(row["vector"]).tobytes() == self.encoders.vector(state.space, path, content), path
            assert row["content_id"] == hashlib.sha256(content.data).hexdigest()
            assert row["source_version"] == "{}-{}".format(*state.objects[path].version)
            assert (row["run"], row["modality"]) == (state.made_in[path], content.kind)
            assert row["text"] == (content.data.decode() if content.kind is Modality.TEXT else None)
            assert row["fingerprint"] == self._member(state.space, content).vector_fp

    # how

    def _change(self, changes: list[Change]) -> None:
        for what, path, to, name in changes:
            here = self.objects.get(path)
            if what == "put":
                self._place(path, CONTENTS[name], self._now())
            elif here is not None and what == "touch":
                self._place(path, here.content, self._now())
            elif here is not None and what == "copy":
                self._place(to, here.content, self._now())
            elif here is not None:
                self._drop(path)
                if what != "delete":
                    self._place(to, here.content, here.mtime_ns)

    def _run(self, way: dict[str, Any], killer: Killer, may_delete: bool = True) -> None:
        live = self.standing  # what died after its record is shown before anything else
        later = [state for run, state in self.kept.items() if live and run > live.run]
        expected = expect(live, later, self.objects, way["space"])
        reads: Counter[str] = Counter()
        if not self.objects and live is None:
            with pytest.raises(SourceError):
                self._embed(way, killer, may_delete)
            return
        state = self._state_after(live, expected, way["space"])
        try:
            report = self._embed(way, killer, may_delete, reads)
        except Killed:
            self._died(killer, state)
            return
        assert report.items == len(self.objects)
        done = Counter({name: getattr(report, name) for name in COUNTED})
        assert done == Counter({name: expected.counts[name] for name in COUNTED})
        assert Counter(report.encode_calls) == expected.encodes
        assert reads == expected.reads or (self.was_killed and reads <= expected.reads)
        if expected.commits:
            assert report.run == state.run
            self._committed(state)
            self.visible = state
            self._check_ledger(report)
        else:
            assert live is not None
            assert (report.run, report.commit) == (live.run, None)
            self.visible = live
        self.was_killed = False

    def _embed(
        self, way: dict[str, Any], killer: Killer, may_delete: bool, reads: Counter[str] | None = None
    ) -> Report:
        recipe = Recipe(
            units=Units(max_items=way["max_items"]), index=Index(small_fragments=way["small_fragments"]), read_threads=2
        )
        counted = reads if reads is not None else Counter()
        read_pinned = objectstore.read_pinned

        def read(uri: str, *pinned: Any) -> bytes:
            counted[uri.removeprefix(f"file://{self.source}/")] += 1
            return read_pinned(uri, *pinned)

        with pytest.MonkeyPatch.context() as patch, without_ray(), watched_by(killer):
            # so few items change by tenths: let runs add to the manifest all the same, and now and then write a whole
            patch.setattr(manifest, "CHANGED_SHARE", 1.0)
            patch.setattr(manifest, "MOST_FILES", 3)
            patch.setattr(reading, "read_pinned", read)
            options = Options(recipe, allow_mass_delete=may_delete)
            space = self.encoders.spaces[way["space"]]
            return embed(str(self.source), str(self.collection), space, options, Watch())

    def _state_after(self, live: State | None, expected: Expected, space: str) -> State:
        """What the next run will have left; a number that was begun and never committed is taken up again."""
        run = f"{len(self.committed) + 1:06d}"
        kept = ("unchanged", "quarantined")
        made_in = {p: live.made_in[p] if what in kept and live else run for p, what in expected.actions.items()}
        return State(run, live.run if live else None, space, dict(self.objects), made_in)

    def _died(self, killer: Killer, state: State | None) -> None:
        """What a killed writer has left: its record in the log decides, and the tag what is seen of it."""
        self.was_killed = True
        if killer.has_settled:
            self.visible = self.standing
        if killer.committed is not None:
            assert state is not None
            assert killer.committed == state.run
            self._committed(state)
            if killer.is_shown:
                self.visible = state

    def _committed(self, state: State) -> None:
        if state.run not in self.committed:
            self.committed.append(state.run)
        self.kept[state.run] = self.standing = state

    def _check_ledger(self, report: Report) -> None:
        entries = {entry["run"]: entry for entry in Collection(str(self.collection)).runs()}
        assert sorted(entries) == self.committed
        assert {entry["state"] for entry in entries.values()} <= {"done", "collected"}
        assert {entries[run]["state"] for run in self.kept} == {"done"}
        assert {name: entries[report.run][name] for name in COUNTED} == report.model_dump(include=set(COUNTED))

    def _member(self, space: str, content: Content) -> Member:
        assert content.kind is not None
        return self.encoders.spaces[space].members[content.kind]

    def _now(self) -> int:
        self.clock += 10**9
        return self.clock

    def _place(self, path: str, content: Content, mtime_ns: int) -> None:
        file = self.source / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.data)
        os.utime(file, ns=(mtime_ns, mtime_ns))
        self.objects[path] = Object(content, mtime_ns)

    def _drop(self, path: str) -> None:
        (self.source / path).unlink()
        del self.objects[path]


COUNTED = ("embedded", "reprojected", "copied", "unchanged", "quarantined")


@pytest.mark.parametrize("histories", [6, pytest.param(15, marks=pytest.mark.long)])
def test_whatever_happens_a_run_does_what_is_left_to_do_once(spaces: dict[str, ResolvedSpace], histories: int) -> None:
    encoders = Encoders(spaces)

    class HistoryHere(History):
        def __init__(self) -> None:
            super().__init__(encoders)

    run_state_machine_as_test(
        HistoryHere,
        settings=settings(
            max_examples=histories,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
