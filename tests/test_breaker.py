"""A run in which one thing goes wrong with many items is paused, and goes on from where it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import write_words
from in_process import command

import batchproj
from batchproj import breaker
from batchproj.breaker import Breaker, Trip
from batchproj.collection.unit import Receipt, Task, Unit
from batchproj.schema import Modality, Reason


def receipt(
    good: int = 0, deferred: int = 0, task: Task = "embed", again: bool = False, name: str = "u", **bad: int
) -> Receipt:
    items = good + deferred + sum(bad.values())
    unit = Unit(name=name, run="000001", task=task, modality=Modality.IMAGE, items=items, bytes=1, again=again)
    quarantined = sum(bad.values())
    return Receipt(
        unit=unit,
        embedded=good,
        quarantined=quarantined,
        reasons=bad,
        deferred=deferred,
        encoded=0,
        busy_s=0,
        part=None,
    )


def trips(share: float, *receipts: Receipt) -> list[Trip | None]:
    looking = Breaker(share)
    return [looking.add(each) for each in receipts]


def test_nothing_is_judged_before_a_thousand_items_are_finished() -> None:
    assert trips(0.05, receipt(corrupt=500), receipt(corrupt=499)) == [None, None]
    *_, trip = trips(0.05, receipt(corrupt=500), receipt(corrupt=499), receipt(good=1, name="last"))
    assert trip is not None
    assert (trip.reason, trip.count, trip.items) == (Reason.CORRUPT, 999, 1_000)
    assert {unit.name for unit in trip.units} == {"u"}  # those that have the reason


def test_more_than_the_share_of_one_reason_is_too_many() -> None:
    assert trips(0.05, receipt(good=950, corrupt=50)) == [None]
    assert trips(0.05, receipt(good=949, corrupt=51)) != [None]
    assert trips(0.05, receipt(good=920, corrupt=40, empty=40)) == [None]
    assert trips(1.0, receipt(corrupt=1_000)) == [None]
    assert trips(0.0, receipt(good=1_000)) == [None]


def test_only_the_last_thousand_count() -> None:
    bad, good = receipt(good=440, corrupt=60), receipt(good=500)
    assert trips(0.05, bad, good)[-1] is not None
    assert trips(0.1, bad, good, good, bad) == [None] * 4
    # what is older than a thousand has left: 60 in all 1,500 would be few, 110 in the last 1,000 are not
    assert trips(0.1, good, bad, receipt(good=450, corrupt=50))[-1] is not None


def test_what_failed_before_is_only_projected_or_not_finished_does_not_count() -> None:
    full = receipt(good=1_000)
    assert trips(0.05, full, receipt(again=True, forbidden=5_000)) == [None, None]
    assert trips(0.05, receipt(corrupt=600), receipt(good=400, task="project")) == [None, None]
    assert trips(0.05, receipt(corrupt=600), receipt(deferred=400)) == [None, None]


def test_silent_films_are_no_bad_items() -> None:
    assert trips(0.0, receipt(good=500, no_sound_track=500), receipt(good=1_000)) == [None, None]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Thirty texts; the last ten are no UTF-8."""
    for number in range(20):
        write_words(tmp_path / "s" / f"a{number:02d}.txt", number)
    for number in range(10):
        (tmp_path / "s" / f"b{number:02d}\x1b.txt").write_bytes(b"w1 \xff" + bytes([48 + number]))
    return tmp_path / "s"


def test_a_paused_run_shows_nothing_and_goes_on_from_what_is_done(
    spoilt: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str]
) -> None:
    (recipe := tmp_path / "recipe.yaml").write_text("units: {max_items: 4}")
    arguments = ("embed", spoilt, tmp_path / "c", "--space", tiny_space, "--recipe", recipe, "--max-bad", "20%")
    monkeypatch.setattr(breaker, "WINDOW_ITEMS", 12)
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (3, "")
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: paused: ")
    assert "items have the reason invalid_utf8 (text that is not UTF-8" in said
    assert said.count("byte 0xff at offset 3 is not UTF-8") == 3
    assert "--retry-quarantined invalid_utf8" in said
    assert "\x1b" not in said
    assert command("search", tmp_path / "c", "w1").returncode == 2  # nothing is visible
    assert 12 <= (before := reads.total()) < 30

    assert command(*arguments).returncode == 3  # nothing has changed, so it does not even begin
    assert reads.total() == before

    done = command(*arguments[:-1], "100%")
    assert done.returncode == 0, done.stderr
    assert set(reads.values()) == {1}  # of what was done before nothing was read again
    assert batchproj.open(str(tmp_path / "c")).table().num_rows == 20
    assert len(reads) == 30


def test_the_next_attempt_tries_again_what_it_is_told_to(
    spoilt: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str]
) -> None:
    (recipe := tmp_path / "recipe.yaml").write_text("units: {max_items: 4}")
    arguments = ("embed", spoilt, tmp_path / "c", "--space", tiny_space, "--recipe", recipe)
    monkeypatch.setattr(breaker, "WINDOW_ITEMS", 12)
    assert command(*arguments).returncode == 3
    bad = {uri for uri in reads if "/b" in uri}
    assert command(*arguments, "--max-bad", "100%", "--retry-quarantined", "invalid_utf8").returncode == 0
    assert bad
    assert all(reads[uri] == 2 for uri in bad)


def test_a_corpus_that_is_no_thousand_items_is_never_paused(spoilt: Path, tmp_path: Path, tiny_space: Path) -> None:
    done = command("embed", spoilt, tmp_path / "c", "--space", tiny_space, "--max-bad", "1%")
    assert done.returncode == 3
    assert done.stdout.startswith("Run 000001 is live: 20 embedded")
    assert batchproj.open(str(tmp_path / "c")).table().num_rows == 20
