"""What a run says of its own speed: against its encoder alone, what held it up, and a timeline of it all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import in_process
import pytest
from in_process import OPTIONS, without_ray
from runs import start

from batchproj import stages
from batchproj.collection.efficiency import efficiency, lines
from batchproj.collection.unit import Receipt, Span, Stage, Unit
from batchproj.embed import Watch, embed
from batchproj.errors import UsageError
from batchproj.schema import Modality
from batchproj.space import open_space, resolve
from batchproj.timeline import require_writable, write_timeline


def unit(number: int) -> Unit:
    return Unit(name=f"u{number}", run="1", task="embed", modality=Modality.TEXT, items=10, bytes=100)


def receipt(number: int, began: float, embed_s: float, model_s: float, where: str = "a:1", **more: float) -> Receipt:
    def span(stage: Stage, began: float, seconds: float, where: str = "b:7") -> Span:
        return Span(stage=stage, where=where, began=began, seconds=seconds)

    spans = [span("read", began - 2, more.pop("read_s", 1.0)), span("embed", began, embed_s, where)]
    if measure_s := more.pop("measure_s", 0.0):
        spans.append(span("measure", began + embed_s, measure_s, where))
    spans.append(span("write", began + embed_s + measure_s, more.pop("write_s", 0.5)))
    return Receipt(
        unit=unit(number),
        embedded=10,
        quarantined=0,
        deferred=0,
        encoded=10,
        busy_s=embed_s,
        model_s=model_s,
        spans=tuple(spans),
        part=None,
        **more,
    )


def test_the_rate_is_that_of_workers_that_have_work_without_the_second_that_measures() -> None:
    receipts = [
        receipt(1, began=100, embed_s=4, model_s=3, measure_s=1, ceiling_per_s=4.0),
        receipt(2, began=105, embed_s=4, model_s=3),
    ]
    (found,) = efficiency([receipts]).values()
    assert (found.workers, found.segments_per_s, found.ceiling_per_s) == (1, 20 / 8, 4.0)
    assert found.of_ceiling == round(20 / 8 / 4, 3)
    assert (found.model, found.decode, found.waiting, found.limited_by) == (0.75, 0.25, 0.0, "model")
    assert lines({"text": found}) == [
        "text: 2.5 segments/s from 1 worker, 62% of what the encoder does alone; 75% of the time in it, "
        "limited by the encoder itself"
    ]


@pytest.mark.parametrize(
    ("embed_s", "model_s", "more", "limit"),
    [(4, 1, {}, "decode"), (1, 0.9, {"read_s": 3.0}, "read"), (1, 0.9, {"write_s": 3.0}, "write")],
)
def test_what_takes_most_of_the_time_is_named(
    embed_s: float, model_s: float, more: dict[str, float], limit: str
) -> None:
    receipts = [receipt(number, 100 + 4 * number, embed_s, model_s, **more) for number in range(4)]
    assert efficiency([receipts])["text"].limited_by == limit


def test_what_is_measured_after_the_last_unit_is_no_part_of_its_time() -> None:
    receipts = [
        receipt(1, began=100, embed_s=4, model_s=3),
        receipt(2, began=104, embed_s=4, model_s=3, measure_s=1, ceiling_per_s=4.0),
    ]
    (found,) = efficiency([receipts]).values()
    assert (found.segments_per_s, found.model) == (20 / 8, 0.75)


def test_two_workers_are_two_and_short_work_tells_nothing() -> None:
    receipts = [receipt(1, 100, 4, 3), receipt(2, 100, 4, 3, where="a:2")]
    found = efficiency([receipts])["text"]
    assert (found.workers, found.segments_per_s, found.of_ceiling) == (2, 20 / 8, None)
    assert efficiency([[receipt(1, 100, 4, 3)]]) == {}
    assert efficiency([]) == {}


def test_what_a_process_does_between_two_rounds_is_not_waiting() -> None:
    first, second = receipt(1, 100, 4, 3), receipt(2, 124, 4, 3)
    (found,) = efficiency([[first], [second]]).values()
    assert (found.workers, found.segments_per_s, found.waiting, found.limited_by) == (1, 20 / 8, 0.0, "model")
    (found,) = efficiency([[first], [receipt(2, 124, 4, 3, where="a:2")]]).values()  # a round has workers of its own
    assert (found.workers, found.segments_per_s, found.waiting) == (1, 20 / 8, 0.0)
    (found,) = efficiency([[first, second]]).values()
    assert (found.waiting, found.limited_by) == (round(20 / 28, 3), "read")


def test_a_timeline_has_every_stage_of_every_unit(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    write_timeline([receipt(1, 100, 4, 3), receipt(2, 104, 4, 3)], file)
    events = json.loads(file.read_text())["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["a", "b"]
    done = [event for event in events if event["ph"] == "X"]
    assert [event["cat"] for event in done] == ["read", "embed", "write"] * 2
    assert (done[1]["ts"], done[1]["dur"], done[1]["tid"]) == (100_000_000, 4_000_000, 1)


def test_where_no_timeline_can_be_written_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        require_writable(tmp_path / "none" / "trace.json")
    require_writable(tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()  # nor is one left where there is nothing to do
    with pytest.raises(UsageError, match="cannot be written"):
        require_writable(tmp_path)


def test_a_run_that_does_nothing_leaves_a_timeline_as_it_was_and_says_so(tmp_path: Path, tiny_space: Path) -> None:
    (source := tmp_path / "texts").mkdir()
    (source / "a.txt").write_text("a b")
    said: list[str] = []
    options, space = replace(OPTIONS, profile=tmp_path / "trace.json"), resolve(open_space(str(tiny_space)))
    with without_ray():
        embed(str(source), str(tmp_path / "c"), space, options, Watch(step=said.append))
        assert f"timeline of what was done: {tmp_path}/trace.json" in said
        before = (tmp_path / "trace.json").read_bytes()
        embed(str(source), str(tmp_path / "c"), space, options, Watch(step=said.append))
    assert (tmp_path / "trace.json").read_bytes() == before
    assert said[-1] == f"no timeline: no unit was done, {tmp_path}/trace.json is as it was"


@pytest.mark.slow
def test_a_run_tells_of_its_workers(tmp_path: Path, tiny_space: Path) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.txt").write_text(f"a b {number}")
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "trace.json"
    recipe.write_text("units: {max_items: 4}")
    arguments = ["embed", source, tmp_path / "c", "--space", tiny_space, "--recipe", recipe]
    run = start(*arguments, "--profile", file, "--json")
    told, said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert json.loads(told)["embedded"] == 40
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "X"]
    units = {event["args"]["unit"] for event in events}
    assert len(units) >= 10
    for stage in ("read", "embed", "write"):
        assert {event["args"]["unit"] for event in events if event["cat"] == stage} == units
    assert not [event for event in events if event["cat"] == "measure"]  # it is over too soon for that
    refused = start("embed", source, tmp_path / "d", "--profile", tmp_path / "none" / "trace.json")
    assert "cannot be written" in refused.communicate(timeout=60)[1]
    assert refused.returncode == 2
    assert not (tmp_path / "d").exists()


def test_a_worker_sees_what_its_encoder_does_alone_when_its_units_are_done(
    tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "LEAST_CEILING_S", 0.0)
    monkeypatch.setattr(in_process, "_actors", {})
    source = tmp_path / "texts"
    source.mkdir()
    for number in range(16):
        (source / f"{number:02}.txt").write_text(f"a b {number}")
    with without_ray():
        embed(str(source), str(tmp_path / "c"), resolve(open_space(str(tiny_space))), OPTIONS, Watch())
    receipts = sorted(_receipts(tmp_path / "c"), key=lambda each: each.spans[0].began)
    measured = [any(span.stage == "measure" for span in each.spans) for each in receipts]
    assert len(receipts) >= 2
    assert measured == [False] * (len(receipts) - 1) + [True]
    assert [each.ceiling_per_s is not None for each in receipts] == measured


def _receipts(collection: Path) -> list[Receipt]:
    return [Receipt.model_validate_json(file.read_text()) for file in collection.glob("units/*/*/done.json")]
