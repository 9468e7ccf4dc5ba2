"""Runs that are not live: searched by their name as long as they are kept, by the models that made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import OPTIONS, command, quiet, run, without_ray
from serving import Client, served

import batchproj
from batchproj.errors import CollectionError, RunMissing
from batchproj.gc import gc
from batchproj.serve.other_runs import MOST_OPEN, OtherRuns

WORDS, OTHERS = "w1 w2 w3 w4", "w9 w8 w7 w6"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path) -> Path:
    """A collection of two runs: before the second one a text was changed, and another deleted."""
    folder = tmp_path_factory.mktemp("two-runs")
    (folder / "corpus").mkdir()
    for name, words in (("changed", WORDS), ("gone", "w5 w5"), ("same", "w1 w5 w9")):
        (folder / f"corpus/{name}.txt").write_text(words)
    with without_ray():
        run(folder / "corpus", folder / "c", tiny_space)
        (folder / "corpus/changed.txt").write_text(OTHERS)
        (folder / "corpus/gone.txt").unlink()
        run(folder / "corpus", folder / "c", tiny_space, replace(OPTIONS, allow_mass_delete=True))
    return folder


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[Client]:
    with served(made / "c") as asked:
        yield asked


def texts(client: Client, **document: object) -> list[str]:
    return [hit["text"] for hit in client.search(text=WORDS, k=9, **document)]


def test_a_kept_run_is_searched_by_its_name(client: Client) -> None:
    assert sorted(texts(client, run="000001")) == sorted([WORDS, "w5 w5", "w1 w5 w9"])
    assert texts(client, run="000002") == texts(client)
    assert sorted(texts(client)) == sorted([OTHERS, "w1 w5 w9"])
    answer = client.post({"text": WORDS, "run": "000001", "k": 1})
    assert (answer.headers["X-Batchproj-Run"], answer.json()["run"]) == ("000001", "000001")
    assert client.form(text=WORDS, run="000001").json()["run"] == "000001"
    assert client.json("/health")["run"] == "000002"


def test_its_items_counts_and_map_are_its_own(client: Client, made: Path) -> None:
    before = {hit["text"]: hit["id"] for hit in client.search(text=WORDS, k=9, run="000001")}
    gone, changed, same = (before[text] for text in ("w5 w5", WORDS, "w1 w5 w9"))
    assert client.get(f"/items/{gone}").status == 404
    assert client.json(f"/items/{gone}?run=000001")["run"] == "000001"
    assert client.json(f"/items/{changed}?run=000001")["text"] == WORDS
    assert client.json(f"/items/{changed}")["text"] == OTHERS
    assert client.get(f"/items/{same}/media?run=000001").data == b"w1 w5 w9"
    refused = client.get(f"/items/{gone}/media?run=000001")
    assert (refused.status, "gone since it was listed" in refused.json()["detail"]) == (404, True)
    assert client.get(f"/items/{changed}/media?run=000001").status == 409
    assert [client.json(f"/stats{which}")["rows"] for which in ("", "?run=000001")] == [2, 3]
    assert [len(client.json(f"/map{which}")["points"]) for which in ("", "?run=000001")] == [2, 3]
    told = [(each["run"], each["live"], each["kept"]) for each in client.json("/runs")["runs"]]
    assert told == [("000002", True, True), ("000001", False, True)]


@pytest.mark.parametrize("path", ["/stats?run=", "/map?run=", "/items/x?run=", "/items/x/media?run="])
def test_one_that_is_not_kept_is_said_to_be_so(client: Client, path: str) -> None:
    for missing in ("000003", "1", "live", "..", "'%20OR%201=1", "a%0Ab"):
        answer = client.get(path + missing)
        assert (answer.status, "no run '" in answer.json()["detail"]) == (404, True), answer.data
        assert "\n" not in answer.json()["detail"]
        assert answer.json()["detail"].endswith("kept are 000001, 000002, and live is 000002")
    assert client.get(path).status == 422
    assert client.get(path + "0" * 21).status == 422
    answer = client.post({"text": "w1", "run": "000003"})
    assert (answer.status, "no run '000003' is kept" in answer.json()["detail"]) == (404, True)


def test_python_and_the_command_search_it_too(made: Path) -> None:
    opened = batchproj.open(made / "c", run="000001")
    assert (opened.run, {hit.text for hit in opened.search(WORDS, k=9)}) == ("000001", {WORDS, "w5 w5", "w1 w5 w9"})
    with pytest.raises(RunMissing, match="no run '7' is kept; kept are 000001, 000002, and live is 000002"):
        batchproj.open(made / "c", run="7")
    with pytest.raises(CollectionError, match="no collection at"):
        batchproj.open(made / "nothing", run="000001")
    done = command("search", made / "c", WORDS, "-k", 1, "--run", "000001", "--json")
    assert json.loads(done.stdout)[0]["text"] == WORDS
    refused = command("search", made / "c", WORDS, "--run", "7")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_it_is_asked_by_the_models_that_made_it_and_closed_when_it_is_collected(
    tiny_space: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        (tmp_path / f"corpus/{number}.txt").write_text(f"w1 w{number + 2}")
    text = f"{{encoder: {{kind: clip, model: {tiny_clip}, dtype: fp32}}}}"
    (tmp_path / "other.yaml").write_text(f"name: other\ndim: 24\ntext: {text}\nimage: {text}\n")
    with without_ray():
        run(tmp_path / "corpus", tmp_path / "c", tiny_space)
        run(tmp_path / "corpus", tmp_path / "c", tmp_path / "other.yaml", replace(OPTIONS, force=True))
    with served(tmp_path / "c", poll_s=600) as client:  # it does not look by itself
        encoder = client.service._encoder
        live = set(encoder._embedders)
        assert client.search(text="w1 w2", k=1, run="000001")[0]["score"] == pytest.approx(1, abs=1e-2)
        assert len(encoder._embedders) == len(live) + 1
        assert client.search(text="w1 w2", k=1)[0]["score"] == pytest.approx(1, abs=1e-5)
        gc(str(tmp_path / "c"), quiet, keep=1, apply=True)
        answer = client.post({"text": "w1 w2", "run": "000001"})
        assert (answer.status, "no run '000001' is kept" in answer.json()["detail"]) == (404, True), answer.data
        assert client.search(text="w1 w2", k=1)[0]["text"] == "w1 w2"
    with served(tmp_path / "c") as client:
        assert [each["kept"] for each in client.json("/runs")["runs"]] == [True, False]


def test_the_last_few_stay_open_and_are_closed_with_their_run() -> None:
    opened: list[str] = []
    closed: list[int] = []
    runs: OtherRuns[str] = OtherRuns(lambda run: opened.append(run) or f"view {run}", lambda: closed.append(1))
    names = [str(number) for number in range(MOST_OPEN)]
    for _ in range(2):
        assert [runs.view(name) for name in names] == [f"view {name}" for name in names]
    assert (opened, closed) == (names, [])
    runs.view("0")
    runs.view("new")
    assert closed == [1]
    assert runs.all() == [*(f"view {name}" for name in names[2:]), "view 0", "view new"]
    runs.keep({"0": 7, "new": 8}, lambda view: {"view 0": 7, "view new": 9}.get(view, 1))
    assert runs.all() == ["view 0"]
    runs.drop(runs.all()[0])
    assert runs.all() == []
