"""What is in quarantine, how often it was tried, and what is tried again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_picture
from in_process import command, quiet, run, without_ray

from batchproj import cli
from batchproj import embed as module_embed
from batchproj.collection import manifest
from batchproj.collection.ledger import Report
from batchproj.collection.snapshot import read_snapshot, write_snapshot
from batchproj.collection.unit import file_digest
from batchproj.decode import versions
from batchproj.decode.limits import Limits
from batchproj.embed import Options
from batchproj.forget import forget
from batchproj.objectstore import Folder
from batchproj.quarantine import quarantined
from batchproj.recipe import Recipe, Units
from batchproj.schema import ABOUT, About, Reason, quarantine_schema
from batchproj.verify import verify


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def options(**limits: int) -> Options:
    return Options(Recipe(units=Units(max_items=8), read_threads=2, limits=Limits(**limits)))


def words(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)


def table(collection: Path, report: Report) -> dict[str, dict[str, Any]]:
    """The rows of a run's quarantine, by the name of the object."""
    found = pq.read_table(collection / "quarantine" / f"{report.run}.parquet")
    assert [(f.name, f.type) for f in found.schema] == [(f.name, f.type) for f in quarantine_schema()]
    return {row["uri"].rpartition("/")[2]: row for row in found.to_pylist()}


def tries(collection: Path, report: Report) -> dict[str, tuple[int, str]]:
    return {name: (row["attempts"], row["run"]) for name, row in table(collection, report).items()}


@pytest.mark.parametrize("changed_share", [0.0, 1.0], ids=["whole manifests", "added to"])
def test_attempts_count_the_runs_that_tried_this_version(
    changed_share: float, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "CHANGED_SHARE", changed_share)
    source, collection = tmp_path / "s", tmp_path / "c"
    words(source, long="w1 w2 w3 w4", longer="w1 w2 w3 w4 w5", empty="", good="w1")
    first = run(source, collection, tiny_space, options(text_bytes=8))
    once = (1, "000001")
    assert tries(collection, first) == {"long.txt": once, "longer.txt": once, "empty.txt": once}

    words(source, other="w2")
    second = run(source, collection, tiny_space, options(text_bytes=8))
    assert tries(collection, second) == tries(collection, first)  # nobody has tried them again

    third = run(source, collection, tiny_space, options(text_bytes=9))
    assert tries(collection, third) == {"long.txt": (2, third.run), "longer.txt": (2, third.run), "empty.txt": once}

    words(source, longer="w1 w2 w3 w4 w5 w6")
    fourth = run(source, collection, tiny_space, options(text_bytes=9))
    assert tries(collection, fourth)["longer.txt"] == (1, fourth.run)  # another version of it
    assert tries(collection, fourth)["long.txt"] == (2, third.run)

    left = forget(str(collection), str(source / "longer.txt"), quiet).run
    assert tries(collection, fourth.model_copy(update={"run": left})) == {
        "long.txt": (2, third.run),
        "empty.txt": once,
    }
    assert verify(str(collection), quiet).damaged == []


def test_every_reason_is_explained() -> None:
    assert set(ABOUT) == set(Reason)
    assert all(about.meaning and about.remedy for about in ABOUT.values())


def test_the_readme_explains_every_reason_in_the_same_words() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", readme.partition("## What cannot be used")[2], re.MULTILINE)
    explained = {name: About(meaning, remedy) for name, meaning, remedy in rows if name in set(Reason)}
    assert explained == ABOUT


@pytest.fixture
def with_bad_files(tmp_path: Path, tiny_space: Path) -> Path:
    """A collection of one good text, two that are no UTF-8, an empty one, and half a picture with an evil name."""
    source = tmp_path / "s"
    words(source, good="w1", empty="")
    (source / "latin1.txt").write_bytes(b"w1 \xe9")
    (source / "latin2.txt").write_bytes(b"w2 \xe9")
    write_picture(source / "a\x1b[31m.png", 1)
    (source / "a\x1b[31m.png").write_bytes((source / "a\x1b[31m.png").read_bytes()[:200])
    assert command("embed", source, tmp_path / "c", "--space", tiny_space).returncode == 0
    return tmp_path / "c"


def test_the_command_counts_by_reason_and_shows_examples(with_bad_files: Path) -> None:
    shown = command("quarantine", with_bad_files)
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0] == "Run 000001: 4 items in quarantine:"
    assert lines[1] == "2 invalid_utf8: text that is not UTF-8; the detail has the place; save it as UTF-8"
    assert lines[2].endswith("latin1.txt: byte 0xe9 at offset 3 is not UTF-8 (decode, tried once)")
    assert {line.partition(":")[0] for line in lines if not line.startswith(" ")} == {
        *["Run 000001", "2 invalid_utf8", "1 empty", "1 truncated"]
    }
    assert "a\\x1b[31m.png" in shown.stdout
    assert "\x1b" not in shown.stdout

    found = json.loads(command("quarantine", with_bad_files, "--json", "-n", "1").stdout)
    assert {name: found[name] for name in ("run", "items")} == {"run": "000001", "items": 4}
    assert next(iter(found["reasons"])) == "invalid_utf8"
    assert found["reasons"] == {"invalid_utf8": 2, "empty": 1, "truncated": 1}
    assert [each["reason"] for each in found["examples"]] == list(found["reasons"])
    assert set(found["examples"][0]) == {"uri", "modality", "reason", "detail", "stage", "attempts", "run"}

    found = json.loads(command("quarantine", with_bad_files, "--json", "--reason", "empty").stdout)
    assert (found["items"], found["reasons"]) == (1, {"empty": 1})
    found = json.loads(command("quarantine", with_bad_files, "--json", "--modality", "image").stdout)
    assert (found["items"], found["reasons"]) == (1, {"truncated": 1})
    assert command("quarantine", with_bad_files, "--modality", "audio").stdout == "Run 000001: 0 items in quarantine.\n"

    wrong = command("quarantine", with_bad_files, "--reason", "corupt")
    assert wrong.returncode == 2
    assert "no 'corupt'; expected one of empty, unknown_type" in wrong.stderr


def test_a_table_of_an_earlier_version_is_shown_too(with_bad_files: Path) -> None:
    file = with_bad_files / "quarantine/000001.parquet"
    old = pq.read_table(file).drop_columns(["attempts"])
    pq.write_table(old, file)
    live = read_snapshot(Folder(str(with_bad_files)), "000001")
    assert live.quarantine is not None
    part = live.quarantine.model_copy(update={"sha256": file_digest(file)})
    write_snapshot(Folder(str(with_bad_files)), live.model_copy(update={"quarantine": part}))
    found = quarantined(str(with_bad_files), 1)
    assert (found.items, [each.attempts for each in found.examples]) == (4, [1, 1, 1])


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("S C", "S C"),
        ("S C --retry-quarantined", "S C --retry-quarantined all"),
        ("S C --retry-quarantined --json", "S C --retry-quarantined all --json"),
        ("--retry-quarantined /data/S C", "--retry-quarantined all /data/S C"),
        ("S C --retry-quarantined corrupt", "S C --retry-quarantined corrupt"),
        ("--retry-quarantined empty S C", "--retry-quarantined empty S C"),
        ("S C --retry-quarantined corupt", "S C --retry-quarantined corupt"),  # to be refused by its name
        ("S C --retry-quarantined=corrupt", "S C --retry-quarantined=corrupt"),
    ],
)
def test_an_optional_reason_may_follow_the_option(given: str, understood: str) -> None:
    assert cli.embedding._with_reasons(given.split()) == understood.split()


def test_a_folder_that_is_there_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frogs").mkdir()
    monkeypatch.chdir(tmp_path)
    understood = ["--retry-quarantined", "all", "frogs", "c"]
    assert cli.embedding._with_reasons(["--retry-quarantined", "frogs", "c"]) == understood


def test_what_is_asked_for_is_tried_again_and_costs_no_commit_in_vain(
    with_bad_files: Path, tmp_path: Path, tiny_space: Path, reads: Counter[str]
) -> None:
    arguments = (tmp_path / "s", with_bad_files, "--json", "--retry-quarantined")
    planned = json.loads(command("plan", *arguments, "invalid_utf8").stdout)
    assert (planned["retry"], planned["quarantined"], planned["unchanged"]) == (2, 2, 1)
    said = command("plan", tmp_path / "s", with_bad_files, "--retry-quarantined").stdout
    assert said.rstrip().endswith("--retry-quarantined all")
    reads.clear()

    done = json.loads(command("embed", *arguments, "invalid_utf8").stdout)
    assert (done["run"], done["quarantined"], done["unchanged"], done["commit"]) == ("000001", 4, 1, None)
    assert sorted(uri.rpartition("/")[2] for uri in reads) == ["latin1.txt", "latin2.txt"]
    reads.clear()

    done = json.loads(command("embed", *arguments).stdout)
    assert (done["quarantined"], done["unchanged"], done["commit"], len(reads)) == (4, 1, None, 4)
    assert "tried" not in done

    told = [arguments[0], arguments[1]]
    in_vain = command("embed", *told, "--retry-quarantined", "invalid_utf8").stdout
    assert in_vain.startswith("Tried 2 quarantined items again, in vain; run 000001 stays live.")
    nothing = command("embed", *told).stdout
    assert nothing.startswith("Nothing to do: 1 items unchanged, run 000001 stays live.")

    words(tmp_path / "s", latin2="w3")  # a run that has something to show counts what it tried in vain
    done = json.loads(command("embed", *arguments).stdout)
    assert (done["items"], done["embedded"], done["quarantined"], done["unchanged"]) == (5, 1, 3, 1)
    found = {each.uri.rpartition("/")[2]: each.attempts for each in quarantined(str(with_bad_files), 9).examples}
    assert found == {"latin1.txt": 2, "empty.txt": 2, "a\x1b[31m.png": 2}

    wrong = command("embed", *arguments, "corupt")
    assert wrong.returncode == 2
    assert "no 'corupt'; expected one of all, empty, unknown_type" in wrong.stderr


def test_what_a_run_of_an_earlier_version_could_not_decode_is_tried_again_once(
    with_bad_files: Path, tmp_path: Path, tiny_space: Path, reads: Counter[str]
) -> None:
    live = read_snapshot(Folder(str(with_bad_files)), "000001")
    write_snapshot(Folder(str(with_bad_files)), live.model_copy(update={"decoders": {}}))
    done = run(tmp_path / "s", with_bad_files, tiny_space)
    assert (done.run, done.quarantined, len(reads)) == ("000002", 4, 4)
    again = run(tmp_path / "s", with_bad_files, tiny_space)
    assert (again.run, again.commit, reads.total()) == ("000002", None, 4)


def test_another_decoder_tries_what_this_one_could_not_decode_once(
    with_bad_files: Path, tmp_path: Path, tiny_space: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (module_embed, versions):  # of the driver, and of its workers
        monkeypatch.setattr(module, "decoders", lambda: {"pillow": "next"})
    done = run(tmp_path / "s", with_bad_files, tiny_space)
    assert (done.quarantined, done.unchanged, len(reads)) == (4, 1, 4)
    assert done.run == "000002"  # noted, or every run from now on would try again
    assert read_snapshot(Folder(str(with_bad_files)), "000002").decoders == {"pillow": "next"}
    again = run(tmp_path / "s", with_bad_files, tiny_space)
    assert (again.run, again.commit, reads.total()) == ("000002", None, 4)
