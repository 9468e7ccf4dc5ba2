"""After forget no byte of an item is left, and it never comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import lance
import pyarrow.parquet as pq
import pytest
from conftest import write_words
from in_process import OPTIONS, once, quiet, run, vectors, without_ray
from lance.file import LanceFileReader

import batchproj
from batchproj import forget as module_forget
from batchproj import gc as module_gc
from batchproj.embed import Options
from batchproj.errors import CollectionError, UsageError
from batchproj.forget import forget
from batchproj.recipe import Index
from batchproj.source.objects import item_id
from batchproj.switch import rollback
from batchproj.verify import verify

WORDS = "w3 w1 w4 w1 w5 w9 w2 w6 w5 w3 w5 w8"
"""The text that must go; no other object has it."""


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def target(corpus: Path) -> Path:
    """The object to forget: one of the corpus, with the text that must go."""
    file = corpus / "d1/item4.txt"
    info = file.stat()
    file.write_text(WORDS)

    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    return file


@pytest.fixture
def collection(corpus: Path, target: Path, tiny_space: Path, tmp_path: Path, made: Path) -> Path:
    """A collection whose two runs hold the item; the second has rewritten the part it was in."""

    def make(folder: Path) -> None:
        run(corpus, folder, tiny_space)
        (corpus / "d1/item1.txt").unlink()
        run(corpus, folder, tiny_space)

    found = once(made / "c", tmp_path / "c", make)
    (corpus / "d1/item1.txt").unlink(missing_ok=True)
    return found


def traces(collection: Path, file: Path, vector: bytes, text: str = WORDS) -> list[str]:
    """Where anything of an item is left: every file's raw bytes, every Parquet column, every version of the table."""
    uri = f"file://{file}"
    words = (uri, item_id(uri), text)
    found = []
    for path in collection.rglob("*"):
        name = str(path.relative_to(collection))
        if not path.is_file() or name == f"forgotten/{item_id(uri)}":
            continue
        data = path.read_bytes()
        told = name.startswith(("log/", "runs/", "lock.json"))  # tell what was done, by the item's id alone
        sought = (uri, text) if told else words
        found += [name for word in sought if word.encode() in data]
        found += [name] if vector in data else []
        if name.endswith(".parquet"):
            content = repr(pq.read_table(path).to_pylist())
            found += [f"{name} decoded" for word in words if word in content]
    table = lance.dataset(str(collection / "vectors.lance"))
    for version in table.versions():
        rows = table.checkout_version(version["version"]).to_table().to_pylist()
        found += [f"version {version['version']}" for word in words if word in repr(rows)]
    return found


def test_nothing_of_the_item_is_left(corpus: Path, target: Path, tiny_space: Path, collection: Path) -> None:
    before = vectors(collection)
    vector = before.pop(f"file://{target}")
    assert traces(collection, target, vector)
    done = forget(str(collection), str(target), quiet)
    assert (done.run, done.rows, done.item) == ("000003", 1, item_id(f"file://{target}"))
    assert {name.partition("/")[0] for name in done.held_by} >= {"parquet", "features", "snapshots", "units"}
    assert traces(collection, target, vector) == []
    assert verify(str(collection), quiet).damaged == []
    assert vectors(collection) == before
    with pytest.raises(CollectionError, match="keeps no run 000001"):
        rollback(str(collection), "000001", quiet)
    report = run(corpus, collection, tiny_space)  # the object is still in the source
    assert (report.commit, report.embedded, report.unchanged) == (None, 0, 22)
    again = forget(str(collection), f"file://{target}", quiet)
    assert (again.run, again.rows, again.held_by) == ("000003", 0, [])


def test_the_ledger_names_the_item_by_its_id_only(target: Path, collection: Path) -> None:
    forget(str(collection), str(target), quiet)
    last = batchproj.open(str(collection)).runs()[-1]
    assert (last["command"], last["state"]) == (f"forget {item_id(f'file://{target}')}", "done")
    assert (last["items"], last["deleted"], last["unchanged"]) == (22, 1, 22)


def test_what_is_not_there_is_refused_and_nothing_is_written(collection: Path) -> None:
    before = set(collection.rglob("*"))
    with pytest.raises(UsageError, match=r"nobody\.txt is not in"):
        forget(str(collection), "/nobody.txt", quiet)
    assert set(collection.rglob("*")) == before


def test_an_item_in_quarantine_is_forgotten_too(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    (corpus / "broken.txt").write_bytes(b"caf\xe9 " + bytes(range(200, 255)))
    collection = tmp_path / "c"
    assert run(corpus, collection, tiny_space).quarantined == 1
    done = forget(str(collection), str(corpus / "broken.txt"), quiet)
    assert done.rows == 0
    assert any(name.startswith("quarantine/") for name in done.held_by)
    assert traces(collection, corpus / "broken.txt", b"no vector at all") == []
    assert verify(str(collection), quiet).damaged == []
    assert run(corpus, collection, tiny_space).commit is None


def test_an_item_that_is_gone_already_is_still_erased_from_what_cached_it(
    corpus: Path, target: Path, tiny_space: Path, collection: Path
) -> None:
    vector = vectors(collection)[f"file://{target}"]
    target.unlink()
    run(corpus, collection, tiny_space)
    assert traces(collection, target, vector)
    done = forget(str(collection), str(target), quiet)
    assert (done.rows, done.run) == (0, "000004")
    assert traces(collection, target, vector) == []
    assert verify(str(collection), quiet).damaged == []


def test_units_of_an_unfinished_run_are_erased(
    corpus: Path, target: Path, tiny_space: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = vectors(collection)[f"file://{target}"]
    for file in (target, corpus / "d2/item5.txt"):
        file.touch()
    with monkeypatch.context() as patched:
        patched.setattr("batchproj.collection.commit.check_complete", stop_at("any", "any"))
        with pytest.raises(Stopped):
            run(corpus, collection, tiny_space)
    done = forget(str(collection), str(target), quiet)
    assert done.run == "000003"
    assert traces(collection, target, vector) == []
    report = run(corpus, collection, tiny_space)
    assert (report.run, report.copied, report.unchanged) == ("000004", 1, 21)


def test_with_an_index_its_codes_go_too(tmp_path: Path, tiny_space: Path) -> None:
    source, collection = tmp_path / "texts", tmp_path / "c"
    for number in range(300):
        write_words(source / f"{number}.txt", number)
    recipe = OPTIONS.recipe.model_copy(update={"index": Index(min_rows=256, unindexed_rows=0)})
    options = Options(recipe.model_copy(update={"units": recipe.units.model_copy(update={"max_items": 100})}))
    run(source, collection, tiny_space, options)
    (source / "300.txt").write_text(f"{WORDS} xylophone")  # a fragment of its own
    run(source, collection, tiny_space, options)
    vector = vectors(collection)[f"file://{source}/300.txt"]
    forget(str(collection), str(source / "300.txt"), quiet)
    assert traces(collection, source / "300.txt", vector) == []
    words = [LanceFileReader(str(file)) for file in (collection / "vectors.lance/_indices").rglob("*tokens.lance")]
    assert sum(file.read_all().to_table()["_token_next_id"][0].as_py() for file in words) == 13  # w1 to w13, no other
    table = batchproj.open(str(collection))._table
    stats = table.index_stats("vector_idx")
    assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (300, 0)
    codes = list((collection / "vectors.lance/_indices").rglob("auxiliary.idx"))
    assert [LanceFileReader(str(file)).num_rows() for file in codes] == [300]
    assert verify(str(collection), quiet).damaged == []


def test_an_item_alone_in_its_fragment_is_forgotten(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    collection = tmp_path / "new"  # without deleted rows: nothing to compact
    run(corpus, collection, tiny_space)
    file = corpus / "d0/late.txt"
    file.write_text(text := "w7 w7 w7 w13 w13")
    run(corpus, collection, tiny_space)
    vector = vectors(collection)[f"file://{file}"]
    forget(str(collection), str(file), quiet)
    assert traces(collection, file, vector, text) == []
    assert verify(str(collection), quiet).damaged == []


def test_the_only_item_can_be_forgotten(tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.txt").write_text(WORDS)
    run(tmp_path / "s", tmp_path / "c", tiny_space)
    vector = next(iter(vectors(tmp_path / "c").values()))
    assert forget(str(tmp_path / "c"), str(tmp_path / "s/a.txt"), quiet).rows == 1
    assert traces(tmp_path / "c", tmp_path / "s/a.txt", vector) == []
    (tmp_path / "s/b.txt").write_text("w1 w2")
    assert run(tmp_path / "s", tmp_path / "c", tiny_space).rows == 1


class Stopped(BaseException):
    """Nothing catches this, as nothing catches kill -9."""


def stop_at(step: str, name: str) -> object:
    def stop(*arguments: object) -> None:
        if step == "any" or arguments == (step,):
            raise Stopped

    return stop


STEPS = [
    (module_forget, "forget.marked"),
    (module_forget, "forget.files"),
    (module_forget, "forget.table"),
    (module_gc, "gc.tags"),
    (module_gc, "gc.snapshots"),
    (module_gc, "gc.units"),
    (module_gc, "gc.table"),
    (module_forget, "forget.collected"),
]


@pytest.mark.parametrize("step", STEPS, ids=[name for _, name in STEPS])
def test_stopped_anywhere_the_same_command_does_the_rest(
    step: tuple[object, str], target: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vectors(collection)
    vector = before.pop(f"file://{target}")
    with monkeypatch.context() as patched:
        patched.setattr(step[0], "failpoint", stop_at(step[1], ""))
        with pytest.raises(Stopped):
            forget(str(collection), str(target), quiet)
    assert verify(str(collection), quiet).damaged == []
    forget(str(collection), str(target), quiet)
    assert traces(collection, target, vector) == []
    assert verify(str(collection), quiet).damaged == []
    assert vectors(collection) == before


def test_in_a_bucket(target: Path, collection: Path, s3_bucket: str, tmp_path: Path) -> None:
    vector = vectors(collection)[f"file://{target}"]
    store = fsspec.filesystem("s3")
    store.put(f"{collection}/", f"{s3_bucket}/c/", recursive=True)
    done = forget(f"{s3_bucket}/c", str(target), quiet)
    assert (done.run, done.rows) == ("000003", 1)
    assert verify(f"{s3_bucket}/c", quiet).damaged == []
    store.get(f"{s3_bucket}/c/", f"{tmp_path}/back/", recursive=True)
    assert traces(tmp_path / "back", target, vector) == []
