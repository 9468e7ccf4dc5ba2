"""What a worker does with its units: turns, when its encoder is measured, memory, and the files it writes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchproj.collection.unit import parquet_bytes
from batchproj.embedding import UnitWorker
from batchproj.features import fixed_size_list
from batchproj.objectstore import Folder
from batchproj.recipe import Recipe
from batchproj.stages import CEILING_S, CEILING_SHARE, LEAST_CEILING_S, Embedding, Job, _fetched, _Measuring, _Turns


def test_who_is_alone_waits_for_the_others_and_keeps_them_out() -> None:
    turns, order = _Turns(2), list[str]()
    other_is_in, other_may_go, is_alone, alone_may_go = (threading.Event() for _ in range(4))

    def other() -> None:
        with turns.one():
            other_is_in.set()
            assert other_may_go.wait(60)
            order.append("other")

    def measured() -> None:
        with turns.one():
            assert other_is_in.wait(60)
            other_may_go.set()
            with turns.alone():
                order.append("alone")
                is_alone.set()
                assert alone_may_go.wait(60)
                order.append("still alone")

    def late() -> None:
        with turns.one():
            order.append("late")

    with ThreadPoolExecutor(3) as pool:
        begun = [pool.submit(other), pool.submit(measured)]
        assert is_alone.wait(60)
        begun.append(pool.submit(late))
        time.sleep(0.05)  # for the late one to come in, if it can
        alone_may_go.set()
        for each in begun:
            each.result(60)
    assert order == ["other", "alone", "still alone", "late"]


def test_an_encoder_is_measured_after_the_last_of_its_units_if_it_had_enough_to_do() -> None:
    enough = LEAST_CEILING_S / CEILING_SHARE
    measuring = _Measuring(2.5)
    assert [measuring.after(seconds) for seconds in (0.2 * enough, 0.0, 1.0 * enough)] == [0, 0, 1.2 * LEAST_CEILING_S]
    assert measuring.after(enough) == 0  # one that fell to it later
    assert _Measuring(1).after(1_000 * enough) == CEILING_S
    assert _Measuring(1).after(0.9 * enough) == 0


_LOADED = """
import gc, sys
from types import SimpleNamespace
from batchproj.objectstore import Folder
from batchproj.recipe import Recipe
from batchproj.stages import Embedding, Job

class Desk:
    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *told: None)

if __name__ == "__main__":  # decoders are started from it
    job = Job(Folder(sys.argv[1]), 8, {}, Recipe())
    Embedding(job, None, 1, 1, 1.0, Desk(), has_own_process=False)
    before = gc.get_freeze_count()
    print(before)
    Embedding(job, None, 1, 1, 1.0, Desk())
    print(gc.get_freeze_count() - before)
"""


def test_a_worker_looks_through_what_it_has_loaded_no_more_and_a_command_is_left_alone(tmp_path: Path) -> None:
    script = tmp_path / "loaded.py"
    script.write_text(_LOADED)
    command = [sys.executable, str(script), str(tmp_path / "collection")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(told[0]) == 0
    assert int(told[1]) > 10_000


def test_who_gets_more_than_one_unit_rehearses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(UnitWorker, "load", lambda _, rehearses: asked.append(rehearses))
    desk = SimpleNamespace(**dict.fromkeys(("started", "at"), SimpleNamespace(remote=lambda *_: None)))
    job = Job(Folder(str(tmp_path)), 8, {}, Recipe())
    for units in (1.0, 2.5):
        Embedding(job, None, 1, 1, units, desk, has_own_process=False)
    assert asked == [False, True]


def test_vectors_have_no_dictionary_and_names_have_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    table = pa.table({"uri": ["s3://b/a"] * 400, "vector": fixed_size_list(vectors)})
    data = parquet_bytes(table)
    file = pq.ParquetFile(pa.BufferReader(data))
    has_dictionary = {
        file.metadata.row_group(0).column(number).path_in_schema.split(".")[0]: file.metadata.row_group(0)
        .column(number)
        .has_dictionary_page
        for number in range(2)
    }
    assert has_dictionary == {"uri": True, "vector": False}
    assert file.read().equals(table)
    assert data == parquet_bytes(table)


def test_bytes_are_copied_when_the_first_item_is_asked_for() -> None:
    class Asked(Exception):
        pass

    class Items:
        def to_pylist(self) -> list[object]:
            raise Asked

    items = _fetched(Items())  # type: ignore[arg-type]
    with pytest.raises(Asked):
        next(items)
