"""What the machine, the store or an installation is to blame for ends a run, and no item."""

from __future__ import annotations

import errno
import io
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL
import pyarrow as pa
import pytest
import torch
from in_process import OPTIONS, run
from PIL import Image
from table_files import listed, quarantined, write

import batchproj
from batchproj import embed as module_embed
from batchproj import objectstore, retry
from batchproj.decode import child
from batchproj.decode.child import Work
from batchproj.decode.faults import refusals_as_faults
from batchproj.decode.image import decode_image
from batchproj.decode.item import PIECE
from batchproj.decode.limits import Limits
from batchproj.decode.process import DecoderProcess
from batchproj.decode.versions import decoders
from batchproj.embed import Options
from batchproj.errors import BatchprojError, CollectionError, DiskFault, ItemFault, TryLater, UsageError
from batchproj.media import ImageSpec
from batchproj.recipe import Recipe
from batchproj.schema import Modality
from batchproj.source import reading
from batchproj.source.place import Place
from batchproj.space import Embedder


@pytest.fixture(autouse=True)
def _impatient() -> Iterator[None]:
    before = retry.patience_s()
    retry.configure(0.0)
    yield
    retry.configure(before)


def row(uri: str, size: int, version: str, place: Place | None = None) -> dict[str, object]:
    return {"uri": uri, "size": size, "source_version": version, "place": None if place is None else str(place)}


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_mount_that_went_away_or_a_machine_in_trouble_is_not_the_objects_fault(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("w1")

    def fail(*_: object) -> bytes:
        raise OSError(number, "trouble")

    monkeypatch.setattr(objectstore.reading, "_read_version", fail)
    monkeypatch.setattr(objectstore.reading, "_head", fail)
    with pytest.raises(TryLater):
        reading.read_items([row(f"file://{tmp_path}/a.txt", 2, "1")], 100, 1)
    table = write(tmp_path / "t.jsonl", [{"uri": "a.txt"}])
    with pytest.raises(TryLater):
        listed(table)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("failing", "of"), [(1, 16), (3, 16), (3, 8), (4, 16)])
def test_a_disk_that_fails_over_few_objects_costs_these_and_over_many_the_run(
    failing: int, of: int, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(of):
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / f"s/{number}.txt").write_text(f"w{number % 13 + 1} w{number % 7 + 1}")
    read = objectstore.reading._read_version

    def fail(fs: object, path: str, *told: Any) -> bytes:
        if int(Path(path).stem) < failing:
            raise OSError(errno.EIO, "Input/output error", path)
        return read(fs, path, *told)

    options = Options(Recipe(retry_s=0.01))
    with monkeypatch.context() as patched:
        patched.setattr(objectstore.reading, "_read_version", fail)
        if failing > 0.2 * of:
            with pytest.raises(TryLater, match=r"check (it|the disk) and run the same command again"):
                run(tmp_path / "s", tmp_path / "c", tiny_space, options)
            return
        report = run(tmp_path / "s", tmp_path / "c", tiny_space, options)
        found = quarantined(tmp_path / "c", report)
    assert (report.embedded, report.quarantined) == (of - failing, failing)
    assert all(
        said.startswith("forbidden: its disk fails over it, and not over what is beside it: [Errno 5]")
        for said in found.values()
    )
    assert (
        run(tmp_path / "s", tmp_path / "c", tiny_space, options).embedded == failing
    )  # it reads again: tried by itself


def test_an_object_alone_tells_nothing_of_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("w1")
    monkeypatch.setattr(
        objectstore.reading, "_read_version", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "trouble"))
    )
    with pytest.raises(DiskFault):
        reading.read_items([row(f"file://{tmp_path}/a.txt", 2, "1")], 100, 1)


def test_small_files_are_handed_over_together_and_a_dead_disk_is_not_waited_for_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed_rows = []
    for number in range(4 * reading.FILES_AT_ONCE):
        file = tmp_path / f"{number}.txt"
        file.write_text(f"w{number}")
        state = file.stat()
        listed_rows.append(row(f"file://{file}", state.st_size, f"{state.st_size}-{state.st_mtime_ns}"))
    wanted = [f"w{number}".encode() for number in range(len(listed_rows))]
    tasks, asked = [], []
    each, read = reading._read_each, objectstore.reading._read_version

    def task_noted(task: Any) -> Any:
        tasks.append(len(task))
        return each(task)

    def failing(*told: Any) -> bytes:
        asked.append(told)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reading, "_read_each", task_noted)
    assert reading.read_items(listed_rows, 100, 4) == wanted
    assert tasks == [reading.FILES_AT_ONCE] * 4
    tasks.clear()
    assert reading.read_items(listed_rows[:40], 100, 16) == wanted[:40]
    assert tasks == [3] * 13 + [1]  # each thread has some
    tasks.clear()
    monkeypatch.setattr(reading, "SMALL_BYTES", 3)  # w100 and on are large
    assert reading.read_items(listed_rows, 100, 4) == wanted
    assert sorted(tasks) == [1] * 28 + [25] * 4
    with monkeypatch.context() as patched:
        patched.setattr(objectstore.reading, "_read_version", failing)
        with pytest.raises(DiskFault):
            reading.read_items(listed_rows[:96], 100, 4)
        assert len(asked) <= 8  # the first of each task, and those that were under way
    bad = str(tmp_path / "5.txt")
    for patience_s, at_once in ((60.0, 1), (0.0, 4)):  # of a disk that has to be waited for all is asked for
        under_way: list[Any] = []
        most: list[int] = []
        met = threading.Barrier(at_once)

        def noted(task: Any, under_way: Any = under_way, most: Any = most, met: Any = met) -> Any:
            under_way.append(task)
            most.append(len(under_way))
            if len(most) <= met.parties:
                met.wait(60)
            try:
                return each(task)
            finally:
                under_way.remove(task)

        with monkeypatch.context() as patched:
            patched.setattr(reading, "QUICK_S", patience_s)
            patched.setattr(reading, "_read_each", noted)
            assert reading.read_items(listed_rows[:40], 100, 4) == wanted[:40]
        assert len(most) == 4
        assert max(most) == at_once

    def one_fails(fs: Any, path: str, *told: Any) -> bytes:
        return failing() if path == bad else read(fs, path, *told)

    monkeypatch.setattr(objectstore.reading, "_read_version", one_fails)
    found = reading.read_items(listed_rows[:96], 100, 4)
    assert isinstance(found[5], ItemFault)
    assert found[:5] + found[6:] == wanted[:5] + wanted[6:96]


def test_an_answer_of_s3_that_is_not_known_is_no_trouble_of_the_machine() -> None:
    """s3fs says EIO of it; waiting for it would be in vain."""
    error = OSError(errno.EIO, "odd")
    error.__cause__ = RuntimeError()
    error.__cause__.response = {"Error": {"Code": "Odd"}, "ResponseMetadata": {"HTTPStatusCode": 400}}  # type: ignore[attr-defined]
    assert not retry.is_transient(error)
    assert retry.is_transient(OSError(errno.EIO, "disk"))
    assert not retry.is_transient(OSError(errno.ENAMETOOLONG, "name"))


def test_want_of_memory_is_not_a_table_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[object]:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setitem(reading._BLOCKS, "parquet", fail)
    place = Place("parquet", (0, 0, 0, "text"))
    with pytest.raises(MemoryError):
        reading.read_items([row(f"file://{tmp_path}/t.parquet#row=1", 2, "1", place)], 100, 1)


def test_a_decoder_without_a_part_of_itself_blames_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "JPEG")
    monkeypatch.delattr(Image.core, "jpeg_decoder")
    with pytest.raises(BatchprojError, match="Pillow is not whole on this machine: decoder jpeg not available") as told:
        decode_image(file.getvalue(), ImageSpec(height=8, width=8, resize_px=8), Limits())
    assert not isinstance(told.value, ItemFault)


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (ImportError("a module that a decoder process may not open"), True),
        (NameError("name '_webp' is not defined"), False),
        (UnboundLocalError("of a path that only odd bytes lead to"), True),
        (OSError("broken data stream when reading image file"), True),
        (ValueError("decoder says no"), True),
    ],
)
def test_odd_bytes_are_told_from_a_broken_installation(error: Exception, blamed: bool) -> None:
    with pytest.raises(BatchprojError) as told, refusals_as_faults("Pillow"):
        raise error
    assert isinstance(told.value, ItemFault) is blamed


def test_a_decoder_that_is_not_there_stops_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(BatchprojError, match=r"a library that decodes cannot be loaded: .*soundfile"):
        decoders()


def test_a_worker_with_other_decoders_than_the_run_says_is_told_so(
    tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is in quarantine would be tried again, or not, for decoders that never saw it."""
    (tmp_path / "s").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "s/a.png")
    monkeypatch.setattr(module_embed, "decoders", lambda: {**decoders(), "pillow": "0.1"})
    with pytest.raises(UsageError, match=rf"are not those of the run: pillow {PIL.__version__}, not 0.1; nothing was"):
        run(tmp_path / "s", tmp_path / "c", tiny_space)
    with pytest.raises(CollectionError):
        batchproj.open(str(tmp_path / "c"))
    (tmp_path / "s/a.png").unlink()
    (tmp_path / "s/a.txt").write_text("w1")  # which Python reads
    assert run(tmp_path / "s", tmp_path / "c", tiny_space).embedded == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["memory", "CUDA", "torch on CPUs"],
)
@pytest.mark.usefixtures("no_ray")
def test_want_of_memory_ends_the_run_and_blames_no_item(
    error: Exception, corpus: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "encode", fail)
        with pytest.raises(UsageError, match=r"a worker ran out of memory: .*units.max_items"):
            run(corpus, tmp_path / "c", tiny_space)
    with pytest.raises(CollectionError):
        batchproj.open(str(tmp_path / "c"))
    assert run(corpus, tmp_path / "c", tiny_space).embedded == 24


@pytest.mark.usefixtures("no_ray")
def test_a_mount_that_is_empty_when_it_is_read_stops_the_run(
    corpus: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [f"item{number}.png" for number in range(12)]
    read = objectstore.reading._read_version

    def vanished(fs: object, path: str, version: str, *told: bool) -> bytes:
        if Path(path).name in away:
            raise FileNotFoundError(path)
        return read(fs, path, version, *told)

    with monkeypatch.context() as patched:
        patched.setattr(objectstore.reading, "_read_version", vanished)
        with pytest.raises(TryLater, match="12 of 24 objects were listed and are gone"):
            run(corpus, tmp_path / "c", tiny_space)
    assert run(corpus, tmp_path / "c", tiny_space).embedded == 24  # it is back: nobody was blamed meanwhile
    monkeypatch.setattr(objectstore.reading, "_read_version", vanished)
    meant = Options(OPTIONS.recipe, allow_mass_delete=True)
    assert run(corpus, tmp_path / "meant", tiny_space, meant).quarantined == 12
    del away[4:]
    assert run(corpus, tmp_path / "few", tiny_space).quarantined == 4


def test_a_decoder_process_hands_on_what_is_no_items_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[child.Answer]:
        yield from ()
        raise BatchprojError("Pillow is not whole on this machine")

    here, there = Pipe()
    child._answer(there, broken(), 60)
    spec = ImageSpec(height=8, width=8, resize_px=8)
    decoder = DecoderProcess(Work(Modality.IMAGE, spec, Limits(), PIECE))
    monkeypatch.setattr(decoder, "_started", lambda: SimpleNamespace(connection=here))
    with pytest.raises(BatchprojError, match=r"^Pillow is not whole on this machine$") as told:
        next(decoder.pieces(b"a picture"))
    assert not isinstance(told.value, ItemFault)
