"""The benchmark's own rules: the same items every time, no time without the right vectors, void rounds, ratios."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import command
from in_process import run as embed
from PIL import Image
from rich.console import Console

from batchproj.bench import benchmark as module
from batchproj.bench import corpus
from batchproj.bench.benchmark import Document, Settings, benchmark, save
from batchproj.bench.calibration import Calibration
from batchproj.bench.contender import Job, Outcome, relative, write_features
from batchproj.bench.contenders import CONTENDERS, Contender, chosen
from batchproj.bench.contenders import batchproj as batchproj_contender
from batchproj.bench.contenders.bare_best import FORWARD_TOKENS, _token_batches
from batchproj.bench.figures import Needs, figures, raw
from batchproj.bench.parity import compare
from batchproj.bench.picture import picture
from batchproj.bench.rounds import Round, Run, run_rounds
from batchproj.bench.table import notes, table
from batchproj.bench.workloads import WORKLOADS, Corpus, expected_ids, prepare
from batchproj.errors import BatchprojError, UsageError
from batchproj.objectstore import Folder
from batchproj.schema import Modality

QUIET = Calibration(bf16=400, fp32=100)
BUSY = Calibration(bf16=340, fp32=100)
DEFAULT, BEST, OURS = (CONTENDERS[name] for name in ("bare-default", "bare-best", "batchproj"))


def digests(made: Corpus) -> dict[str, str]:
    names = pq.read_table(made.manifest)["id"].to_pylist()
    return {name: hashlib.sha256((made.files / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize("name", ["text-short", "text-long", "image-small", "audio-short", "many-small-objects"])
def test_an_item_is_the_same_whenever_and_with_however_many_it_is_made(name: str, tmp_path: Path) -> None:
    few, more = prepare(WORKLOADS[name], 2, tmp_path / "a"), prepare(WORKLOADS[name], 4, tmp_path / "b")
    assert digests(few).items() <= digests(more).items()
    assert len(set(digests(more).values())) == 4
    assert prepare(WORKLOADS[name], 2, tmp_path / "a") == few


def test_items_are_as_large_as_their_workload_says() -> None:
    assert len(corpus.record([1]).encode()) == 2_000
    data = corpus.photograph([1])
    picture = Image.open(BytesIO(data))
    assert picture.format == "JPEG"
    assert picture.width >= 1_600
    assert len(data) * 8 / (picture.width * picture.height) > 1  # a flat picture has a tenth of a bit a pixel
    assert max(Image.open(BytesIO(corpus.icon([1]))).size) <= 300


def test_photographs_that_come_again_are_the_same_pictures_in_other_bytes(tmp_path: Path) -> None:
    workload = replace(WORKLOADS["image-camera"], distinct=1)
    files = prepare(workload, 3, tmp_path).files
    first, second, third = (file.read_bytes() for file in sorted(files.rglob("*.jpg")))
    assert len({first, second, third}) == 3
    pixels = [np.asarray(Image.open(BytesIO(data))) for data in (first, second, third)]
    assert all(np.array_equal(each, pixels[0]) for each in pixels)


def test_a_long_sound_has_an_id_for_each_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "long_seconds", lambda _: 65.0)
    monkeypatch.setattr(corpus, "sound", lambda _seed, _seconds: b"")
    manifest = prepare(WORKLOADS["audio-long"], 1, tmp_path).manifest
    row = pq.read_table(manifest).to_pylist()[0]
    assert expected_ids(manifest) == {f"{row['id']}#{number}" for number in range(row["segments"])}
    assert row["segments"] == -(-row["seconds"] // 30)


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("/c/files", "/c/files/000/1.txt", "000/1.txt"),
        ("/c/files", "file:///c/files/000/1.txt", "000/1.txt"),
        ("s3://bench/items", "bench/items/000/1.txt", "000/1.txt"),
        ("s3://bench/items", "s3://bench/items/000/1.flac#2", "000/1.flac#2"),
    ],
)
def test_names_of_all_libraries_become_ids_of_the_manifest(source: str, name: str, expected: str) -> None:
    assert relative(source, name) == expected


def written(folder: Path, ids: list[str], features: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_features(a_job(folder), ids, features)
    return folder / "features.parquet"


def a_job(out: Path) -> Job:
    told = {"workload": "text-short", "modality": Modality.TEXT, "source": "/nowhere", "manifest": out, "cores": 2}
    return Job(out=out, **told)


def test_parity_wants_every_id_once_and_every_vector_close(tmp_path: Path) -> None:
    ids = ["a", "b", "c"]
    right = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    reference = written(tmp_path / "reference", ids, right)

    def problem(ids: list[str], features: np.ndarray) -> str | None:
        return compare(written(tmp_path / "it", ids, features), reference, {"a", "b", "c"}, Modality.TEXT).problem

    assert problem(["c", "b", "a"], 3 * right[::-1]) is None
    assert problem(ids, right * [[1], [1], [-1]]) == "least cosine to fp32 is -1.0000, 0.999 was expected"
    assert problem(["a", "c", "b"], right) is not None
    assert problem(ids[:2], right[:2]) == "1 of 3 ids have no feature, 'c' first"
    assert problem([*ids, "d"], right[[0, 1, 2, 2]]) == "1 ids were not asked for, 'd' first"
    assert problem([*ids, "a"], right[[0, 1, 2, 0]]) == "1 ids came twice"
    assert problem(ids, right[:, :4]) == "features are 4 wide, 8 was expected"
    assert problem(ids, np.where(np.eye(3, 8) > 0, np.nan, right)) == "NaN or infinity among the features"


@pytest.mark.usefixtures("no_ray")
def test_a_run_of_ours_tells_when_its_units_were_worked_on(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    before = time.time()
    report = embed(corpus, tmp_path / "c", tiny_space)
    after = time.time()
    receipts = batchproj_contender._receipts(Folder(str(tmp_path / "c")), report.run)
    outcome = batchproj_contender._outcome(receipts, None)
    assert len(receipts) > 1
    assert before < outcome.ready < outcome.done < after
    parts = (outcome.decode_s, outcome.model_s, outcome.write_s)
    assert all(part is not None and 0 < part < after - before for part in parts)


def made_up(steady: float, start: float = 1.0, busy: float = 1.0, end: float = 0.0, **told: float) -> Run:
    """A process that started at 100 and whose last feature was written `start` + `steady` later."""
    ready, done = 100 + start, 100 + start + steady
    return Run(100.0, done + end, busy, Outcome(ready=ready, done=done, **told))


def test_a_round_in_which_the_machine_was_busy_is_void_and_is_run_again() -> None:
    said = iter([QUIET, QUIET, QUIET, BUSY, QUIET, QUIET, QUIET, QUIET])
    orders = []
    rounds, failed = run_rounds(
        [DEFAULT, BEST], 3, lambda _: made_up(1), lambda: next(said), lambda _, each: orders.append(each.order)
    )
    assert [each.void for each in rounds] == [False, True, False, False]
    assert failed == {}
    assert orders == [["bare-default", "bare-best"], ["bare-best", "bare-default"]] * 2


@pytest.mark.parametrize(("fp32", "void"), [(100, False), (105, False), (140, True)])
def test_without_bf16_the_other_product_tells(fp32: float, void: bool) -> None:
    said = iter([Calibration(bf16=None, fp32=rate) for rate in (100, fp32, 100, 100, 100)])
    rounds, _ = run_rounds([BEST], 3, lambda _: made_up(1), lambda: next(said), lambda *_: None)
    assert any(each.void for each in rounds) is void
    assert raw(rounds)[0]["calibrations"] == {"bare-best": {"fp32_gflops": 100}}


def test_on_a_machine_that_is_never_quiet_rounds_end() -> None:
    rates = iter([100, 200, 400, 800])
    rounds, _ = run_rounds(
        [BEST], 2, lambda _: made_up(1), lambda: Calibration(bf16=next(rates), fp32=100), lambda *_: None
    )
    assert len(rounds) == 4


def test_a_contender_that_fails_is_in_no_round_and_the_others_go_on() -> None:
    runs = iter([made_up(1), made_up(2), made_up(1)])

    def start(contender: Contender) -> Run:
        if contender == BEST:
            return made_up(1)
        if (run := next(runs, None)) is None:
            raise BatchprojError("no memory")
        return run

    rounds, failed = run_rounds([BEST, OURS], 5, start, lambda: QUIET, lambda *_: None)
    assert failed == {"batchproj": "no memory"}
    assert [set(each.runs) for each in rounds] == [{"bare-best"}] * 5


def a_round(ours: Run, best: Run, default: Run, void: bool = False) -> Round:
    runs = {"batchproj": ours, "bare-best": best, "bare-default": default}
    return Round(list(runs), runs, dict.fromkeys(runs, QUIET), void)


def test_figures_are_medians_of_ratios_within_rounds() -> None:
    rounds = [
        a_round(made_up(2, busy=6), made_up(1, busy=3), made_up(8)),
        a_round(
            made_up(100, busy=9), made_up(90, busy=3), made_up(800)
        ),  # a slow round: its ratio counts, not its time
        a_round(made_up(1, busy=3), made_up(1, busy=3), made_up(8)),
        a_round(made_up(1000), made_up(1), made_up(1), void=True),
    ]
    one = figures(rounds, "batchproj", Needs(items=200, flops=4 * 10**12, price=3.6))
    assert (one.void, one.rounds) == (False, 3)
    assert one.speed is not None
    assert (one.speed.median, one.speed.low, one.speed.high) == (0.9, 0.5, 1.0)
    assert one.over_default is not None
    assert one.over_default.median == 8
    assert one.busy is not None
    assert one.busy.median == 2
    assert one.items_per_s == 100  # of the median round, 2 s
    assert one.per_million == pytest.approx(10)
    assert one.of_peak == pytest.approx(4e12 / 2 / 400e9)


def test_start_up_is_in_the_whole_and_not_in_the_steady_part() -> None:
    ours, best = made_up(2, start=7, end=1), made_up(2, start=2.5, end=0.5)
    one = figures([a_round(ours, best, best)], "batchproj", Needs(items=1))
    assert one.speed is not None
    assert one.speed_whole is not None
    assert (one.speed.median, one.speed_whole.median, one.start_s) == (1, 0.5, 7)


def test_padding_and_shares_are_those_that_were_told() -> None:
    told = {"decode_s": 1.0, "model_s": 3.0, "real_tokens": 100, "padded_tokens": 150}
    one = figures([a_round(made_up(4, **told), made_up(4), made_up(4))], "batchproj", Needs(items=1))
    assert (one.padding, one.decode, one.model, one.write) == (1.5, 0.25, 0.75, None)


def test_batches_of_the_ceiling_keep_to_its_budget_and_leave_nothing_out() -> None:
    rows = [[0] * length for length in np.random.default_rng(0).integers(3, 256, 200)]
    order = sorted(range(200), key=lambda index: len(rows[index]))
    batches = list(_token_batches(order, rows))
    assert [index for batch in batches for index in batch] == order
    assert max(len(batch) * len(rows[batch[-1]]) for batch in batches) <= FORWARD_TOKENS


def test_unknown_names_are_refused_and_the_ceiling_always_takes_part() -> None:
    assert [each.name for each in chosen(["batchproj"])] == ["bare-best", "batchproj"]
    with pytest.raises(UsageError, match="no contender 'spark': expected some of bare-default"):
        chosen(["spark"])


def test_its_help_names_all_workloads_and_contenders() -> None:
    told = " ".join(command("bench", "--help").stdout.replace("│", " ").split())
    assert [name for name in (*WORKLOADS, *CONTENDERS) if name not in told] == []


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", Path("/proc/nowhere")):
        done = command("bench", "reproject", "--items", "8", "--out", out)
        assert (done.returncode, done.stderr.count("\n"), "cannot be written to" in done.stderr) == (2, 1, True)


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Document]:
    """A benchmark of text-short whose processes are pretended: all write the same vectors, but `wrong` and `short`."""
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module._Bench, "flops", lambda _: 10**9)

    def run(calibration: Callable[[], Calibration], names: list[str], wrong: str = "", lost: str = "") -> Document:
        started: list[str] = []

        def start(contender: Contender, job: Job) -> Run:
            started.append(contender.name)
            ids = sorted(expected_ids(job.manifest))
            features = np.random.default_rng(contender.name == wrong).standard_normal((len(ids), 4))
            kept = len(ids) - (contender.name == lost)
            job.out.mkdir(parents=True, exist_ok=True)
            write_features(job, ids[:kept], features[:kept])
            return made_up(2 if contender == BEST else 4)

        monkeypatch.setattr(module, "start_process", start)
        monkeypatch.setattr(module, "calibrate", calibration)
        settings = Settings(rounds=2, items=8)
        documents = list(benchmark([WORKLOADS["text-short"]], chosen(names), settings, lambda _: None))
        assert [started.count(name) for name in (wrong, lost) if name] == [1] * bool(wrong) + [1] * bool(lost)
        return documents[-1]

    return run


def shown(document: Document) -> str:
    stream = StringIO()
    Console(file=stream, width=80).print(table(document))
    return stream.getvalue()


def test_who_gives_other_vectors_or_too_few_is_not_timed(pretended: Callable[..., Document]) -> None:
    names = ["bare-default", "batchproj", "ray-data"]
    document = pretended(lambda: QUIET, names, wrong="ray-data", lost="batchproj")
    found = document.results[0].contenders
    assert found["bare-default"].speed is not None
    assert found["bare-default"].speed.median == 0.5
    assert found["ray-data"].speed is None
    assert found["ray-data"].missing is not None
    assert found["ray-data"].missing.startswith("least cosine to fp32 is")
    assert found["batchproj"].missing == "1 of 8 ids have no feature, '000/000007.txt' first"
    lines = shown(document).splitlines()
    assert [line.split()[-2:] for line in lines if "ray-data" in line] == [["left", "out"]]
    assert "text-short, batchproj: left out: 1 of 8 ids have no feature, '000/000007.txt' first" in notes(document)


def test_without_the_right_ceiling_there_is_no_figure_at_all(pretended: Callable[..., Document]) -> None:
    document = pretended(lambda: QUIET, ["batchproj"], wrong="bare-best")
    result = document.results[0]
    assert result.contenders == {}
    assert result.missing is not None
    assert "bare-best is what all are compared with" in result.missing
    assert any(line.startswith("text-short: left out: bare-best") for line in notes(document))


def test_void_rounds_alone_are_marked_wherever_they_are_shown(
    pretended: Callable[..., Document], tmp_path: Path
) -> None:
    rates = iter(range(100, 1_000, 20))
    document = pretended(lambda: Calibration(bf16=next(rates), fp32=100), ["batchproj"])
    assert (document.results[0].valid, document.results[0].void) == (0, 4)
    assert "…" not in shown(document)
    lines = shown(document).splitlines()
    (line,) = (line for line in lines if "batchproj" in line)
    assert line.split()[1] == "~0.50"
    assert {"0 rounds", "4 void"} <= {line.strip() for line in lines}
    assert "text-short: every round is void, the machine was busy: ~ figures mean little" in notes(document)
    saved = json.loads(save(document, tmp_path).read_text())
    assert [each["void"] for each in saved["results"][0]["rounds"]] == [True] * 4


def test_work_of_a_moment_is_called_that(pretended: Callable[..., Document]) -> None:
    document = pretended(lambda: QUIET, ["batchproj"])
    assert not any("is done in" in line for line in notes(document))
    document.results[0].contenders["bare-best"].items_per_s *= 2
    assert any("text-short: bare-best is done in 1.0 s" in line for line in notes(document))


def test_the_picture_has_a_bar_for_whoever_was_timed(pretended: Callable[..., Document]) -> None:
    pytest.importorskip("matplotlib")
    drawn = picture(pretended(lambda: QUIET, ["batchproj", "ray-data"], wrong="ray-data"))
    assert drawn is not None
    texts = [each for each in ("0.50", "batchproj", "ray-data") if f"<!-- {each} -->".encode() in drawn]
    assert texts == ["0.50", "batchproj"]


def bench(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    line = [sys.executable, "-m", "batchproj.cli", "bench", *arguments, "--rounds", "1", "--json"]
    told = {**os.environ, "BATCHPROJ_CACHE": str(tmp_path / "cache")}
    line += ["--out", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, env=told, check=False)
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    assert [each["missing"] for each in results] == [None] * len(results), results
    return results


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_the_whole_of_it_on_a_few_items(tmp_path: Path) -> None:
    names = ["bare-default", "bare-best", "batchproj"]
    (result,) = bench(tmp_path, "text-short", "--items", "40", "--contenders", ",".join(names), "--price", "1")
    found = result["contenders"]
    assert list(found) == names
    for name in names:
        assert found[name]["cosine"] > 0.999
        assert found[name]["speed"]["median"] > 0
        assert found[name]["per_million"] > 0
    assert found["batchproj"]["padding"] >= 1
    assert 1 <= found["bare-best"]["padding"] < found["bare-default"]["padding"]


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_every_workload_can_be_made_and_gone_through(tmp_path: Path) -> None:
    names = ["image-camera", "audio-short", "many-small-objects"]
    results = bench(tmp_path, *names, "--items", "8", "--contenders", "bare-best")
    assert [each["workload"] for each in results] == names
    assert [each["items"] for each in results] == [8] * 3
    (result,) = bench(tmp_path, "reproject", "--items", "300", "--contenders", "batchproj")
    assert result["contenders"]["batchproj"]["cosine"] > 0.9999
