"""A run in which one thing goes wrong with many items is paused, and goes on from where it was."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import write_words
from in_process import command, run, stopped_when_its_units_are_done

import batchproj
from batchproj import breaker, execution, objectstore
from batchproj.breaker import Breaker, Trip
from batchproj.collection.plan import Plan
from batchproj.collection.unit import Receipt, Task, Unit
from batchproj.decode.limits import Limits
from batchproj.embed import Options
from batchproj.errors import BatchprojError, TryLater, UsageError
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality, Reason


def receipt(
    good: int = 0,
    deferred: int = 0,
    task: Task = "embed",
    again: bool = False,
    name: str = "u",
    gone: int = 0,
    **bad: int,
) -> Receipt:
    items = good + deferred + sum(bad.values())
    unit = Unit(name=name, run="000001", task=task, modality=Modality.IMAGE, items=items, bytes=1, again=again)
    quarantined = sum(bad.values())
    return Receipt(
        unit=unit,
        embedded=good,
        quarantined=quarantined,
        reasons=bad,
        gone=gone,
        deferred=deferred,
        encoded=0,
        busy_s=0,
        part=None,
    )


def trips(share: float, *receipts: Receipt) -> list[Trip | None]:
    looking = Breaker(share)
    return [looking.add([each]) for each in receipts]


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
    # what is older than a thousand has left: 600 in all 1,500 would not be most, those of the last 1,000 are
    assert trips(0.4, good, receipt(good=200, corrupt=300), receipt(good=200, corrupt=300))[-1] is not None


def test_some_of_one_folder_stop_no_run_that_is_sound_and_a_storm_that_begins_late_does() -> None:
    sound = [receipt(good=1_000)] * 100
    assert not any(trips(0.05, *sound, receipt(good=940, corrupt=60), receipt(good=500, corrupt=500), *sound))
    *before, trip = trips(0.05, *sound, receipt(good=499, corrupt=501))
    assert not any(before)
    assert trip is not None
    assert (trip.count, trip.items) == (501, 1_000)
    # a reason that is not the most frequent one of the window may be the one that is too many
    *_, trip = trips(0.05, receipt(good=1_000, empty=100), receipt(good=1_000), receipt(good=840, empty=70, corrupt=90))
    assert trip is not None
    assert trip.reason is Reason.EMPTY


def in_plan_order(**names: int) -> Iterator[Unit]:
    """Units of a plan of so many objects of each kind of name."""
    items = [f"{number:04d}.{ending}" for ending, count in names.items() for number in range(count)]
    columns = dict.fromkeys(("item", "uri", "key", "source_version"), items)
    page = pa.table(columns | {"size": [1] * len(items)})
    nothing = {name: pa.nulls(len(items), pa.string()) for name in ("pair", "metadata", "place")}
    for name, values in nothing.items():
        page = page.append_column(name, values)
    with Plan({}, Limits()) as plan:
        plan.add_listing(page.combine_chunks().to_batches()[0])
        plan.decide()
        for unit, _ in plan.cut("000001", "embed", plan.to_embed(), max_items=256, max_bytes=1_000):
            yield unit


def test_what_a_source_holds_beside_is_nothing_that_goes_wrong() -> None:
    """Units come by modality: whatever cannot be embedded comes last, all at once."""
    units = list(in_plan_order(txt=950, mp4=60, zip=2_000))
    assert [unit.modality for unit in units] == sorted((unit.modality for unit in units), key=lambda each: each or "z")
    reasons = {Modality.VIDEO: "no_encoder", None: "unknown_type"}
    done = [
        receipt(**({reasons[unit.modality]: unit.items} if unit.modality in reasons else {"good": unit.items}))
        for unit in units
    ]
    assert sum(each.quarantined for each in done) == 2_060
    assert not any(trips(0.0, *done))
    assert not any(trips(0.0, receipt(unsupported_format=2_000)))


def test_what_an_earlier_attempt_did_is_judged_as_a_whole_in_whatever_order() -> None:
    done = [receipt(good=1_000)] * 9 + [receipt(corrupt=300)]
    for order in (done, done[::-1]):
        looking = Breaker(0.05)
        assert looking.add(order) is None
        assert looking.add([receipt(good=900)]) is None  # 300 of 10,200
        assert Breaker(0.03).add(order) is not None
    looking = Breaker(0.05)  # and leaves the window at once
    assert looking.add([receipt(good=500), receipt(good=500)]) is None
    assert looking.add([receipt(corrupt=1_000)]) is not None


def test_only_a_window_that_can_hardly_be_read_stops_for_what_may_pass() -> None:
    assert not any(trips(0.05, receipt(good=510, forbidden=490), receipt(good=1_000)))
    assert not any(trips(0.05, receipt(changed=1_000), receipt(changed=1_000, gone=490)))
    for bad in ({"forbidden": 501}, {"changed": 501, "gone": 501}):
        *_, trip = trips(0.05, receipt(good=9_000), receipt(good=499, **bad))
        assert trip is not None
        assert (trip.reason, trip.count, trip.items) == (next(iter(bad)), 501, 1_000)
        assert Breaker(0.05, [trip.reason]).add([receipt(good=499, **bad)]) is None
        assert Breaker(1.0).add([receipt(good=499, **bad)]) is None


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


def ledger_of(collection: Path) -> tuple[str, int]:
    """State of the newest run, and how many processes of it died."""
    newest = json.loads(command("runs", collection, "--json").stdout)[-1]
    assert newest["state"] in command("runs", collection).stdout
    return newest["state"], newest["died"]


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
    assert "for a run with the same space, limits and decoders" in said
    assert "\x1b" not in said
    assert command("search", tmp_path / "c", "w1").returncode == 2  # nothing is visible
    assert ledger_of(tmp_path / "c") == ("paused", 0)
    shown = command("quarantine", tmp_path / "c", "-n", "1").stdout.splitlines()
    assert re.fullmatch(r"Run 000001 is paused, and nothing of it is committed: \d+ items found bad so far:", shown[0])
    assert re.fullmatch(r"\d+ invalid_utf8: .*", shown[1])
    assert shown[2].endswith("byte 0xff at offset 3 is not UTF-8 (decode, tried once)")
    assert 12 <= (before := reads.total()) < 30

    assert command(*arguments).returncode == 3  # nothing has changed, so it does not even begin
    assert reads.total() == before
    assert ledger_of(tmp_path / "c") == ("paused", 0)  # nobody died: it was begun twice, and paused twice

    done = command(*arguments[:-1], "100%")
    assert done.returncode == 0, done.stderr
    assert set(reads.values()) == {1}  # of what was done before nothing was read again
    assert batchproj.open(str(tmp_path / "c")).table().num_rows == 20
    assert len(reads) == 30
    assert ledger_of(tmp_path / "c") == ("done", 0)

    for number in range(20):  # a run beside the live one shows both
        (tmp_path / "s" / f"c{number:02d}.txt").write_bytes(b"w2 \xff" + bytes([48 + number]))
    assert command(*arguments).returncode == 3
    found = json.loads(command("quarantine", tmp_path / "c", "--json").stdout)
    assert (found["run"], found["items"], found["committed"]) == ("000001", 10, True)
    assert (found["paused"]["run"], found["paused"]["committed"]) == ("000002", False)
    assert found["paused"]["items"] >= 12
    assert ledger_of(tmp_path / "c") == ("paused", 0)


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


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("trouble", "error", "said"),
    [
        (
            FileNotFoundError,
            TryLater,
            "of the last 1[2-5] objects were listed and are gone: is the source's mount away",
        ),
        (PermissionError, UsageError, "of the last 1[2-5] objects may be listed but not read"),
    ],
    ids=["mount", "rights"],
)
def test_a_lost_mount_or_lost_rights_stop_early_and_blame_nothing(
    trouble: type[OSError],
    error: type[BatchprojError],
    said: str,
    tmp_path: Path,
    tiny_space: Path,
    monkeypatch: pytest.MonkeyPatch,
    reads: Counter[str],
) -> None:
    for number in range(24):
        write_words(tmp_path / "s" / f"{number:02d}.txt", number)
    options = Options(Recipe(units=Units(max_items=4), read_threads=2), max_bad=0.05)
    monkeypatch.setattr(breaker, "WINDOW_ITEMS", 12)
    read = objectstore.reading._read_version

    def fail(fs: object, path: str, *told: bool) -> bytes:
        if path.endswith("/00.txt"):
            return read(fs, path, *told)
        raise trouble(path)

    with monkeypatch.context() as patched:
        patched.setattr(objectstore.reading, "_read_version", fail)
        with pytest.raises(error, match=said):
            run(tmp_path / "s", tmp_path / "c", tiny_space, options)
    assert 12 <= reads.total() < 24
    reads.clear()
    with stopped_when_its_units_are_done():  # it is back, and what failed is not taken for done
        run(tmp_path / "s", tmp_path / "c", tiny_space, options)
    assert len(reads) == 24


def test_a_unit_that_could_read_nothing_is_done_again_by_the_next_attempt() -> None:
    assert execution._is_unread(receipt(good=1, changed=1, forbidden=1))
    assert not execution._is_unread(receipt(good=2, changed=1, forbidden=1))


def test_a_corpus_that_is_no_thousand_items_is_never_paused(spoilt: Path, tmp_path: Path, tiny_space: Path) -> None:
    done = command("embed", spoilt, tmp_path / "c", "--space", tiny_space, "--max-bad", "1%")
    assert done.returncode == 3
    assert done.stdout.startswith("Run 000001 is live: 20 embedded")
    assert batchproj.open(str(tmp_path / "c")).table().num_rows == 20
