"""Lance tables that demand too much, and what the process that lists them may do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from in_process import command, without_ray

from batchproj.errors import BatchprojError, SourceError, TryLater
from batchproj.source import lance as source_lance
from batchproj.source.ended import Allowed
from batchproj.source.lance import listed, pages

MIB = 1 << 20
ALLOWED = Allowed(256 * MIB, 20.0)


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def bomb(uri: Path) -> str:
    """A row with a list of six million words, which take two bytes each where they are stored, and a hundred here."""
    words = pa.array(["w" * 40] * (6 * MIB))
    listed = pa.ListArray.from_arrays(pa.array([0, len(words)], pa.int32()), words)
    lance.write_dataset(pa.table({"text": ["w1"], "words": listed}), uri)
    assert sum(file.stat().st_size for file in uri.rglob("*") if file.is_file()) < 16 * MIB
    return f"file://{uri}"


def rows_of(uri: str, allowed: Allowed) -> int:
    return sum(map(len, pages(listed(uri, allowed), allowed)))


def test_a_table_that_unfolds_to_gigabytes_is_one_line(tmp_path: Path) -> None:
    uri = bomb(tmp_path / "t.lance")
    said = f"{uri} takes more memory to list than {ALLOWED.memory_bytes:,} bytes: "
    with pytest.raises(SourceError, match=re.escape(said)):
        rows_of(uri, ALLOWED)
    (recipe := tmp_path / "recipe.yaml").write_text(f"limits: {{table_bytes: {ALLOWED.memory_bytes}}}")
    done = command("embed", tmp_path / "t.lance", tmp_path / "c", "--recipe", recipe)
    assert (done.returncode, (tmp_path / "c").exists()) == (2, False)
    assert re.fullmatch(rf"error: {re.escape(said)}[^\n]*raise limits.table_bytes in the recipe\n", done.stderr)


def test_a_table_of_many_large_values_is_read_some_at_a_time(tmp_path: Path) -> None:
    """It is larger than what listing it may take, and no batch of it is."""
    values = [os.urandom(MIB) for _ in range(400)]
    lance.write_dataset(pa.table({"bytes": values}), tmp_path / "t.lance")
    assert rows_of(f"file://{tmp_path}/t.lance", ALLOWED) == 400


POISONED = [
    ("crash", SourceError, "crash.lance cannot be read: it is damaged, and Lance ends with SIGSEGV; write it again$"),
    ("spin", SourceError, "spin.lance takes more processor time to list than its 2 rows allow: "),
    ("hang", SourceError, "hang.lance takes more time to list than its 2 rows allow: "),
    ("eat", SourceError, "eat.lance takes more memory to list than 268,435,456 bytes: "),
    ("be_killed", TryLater, "be_killed.lance was ended by SIGKILL, perhaps for want of memory; run the same command"),
    ("leave", BatchprojError, "leave.lance ended with exit code 3"),
    ("stumble", BatchprojError, "cannot be listed: KeyError in poisoned_child.py, line [0-9]+: 'nothing'; please"),
    ("tell", SourceError, r"secrets: \[\]"),
    ("away", SourceError, "a row that is not the table's"),
]


@pytest.mark.parametrize(("poison", "raised", "said"), POISONED, ids=[poison for poison, _, _ in POISONED])
def test_what_a_table_may_do_to_the_process_that_lists_it(
    poison: str, raised: type[BatchprojError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setattr(source_lance, "PROGRAM", "poisoned_lister")
    monkeypatch.setattr(source_lance, "patience_s", lambda: 0.0)
    lance.write_dataset(pa.table({"text": ["a", "b"]}), tmp_path / f"{poison}.lance")
    lance.write_dataset(pa.table({"text": ["a", "b"]}), tmp_path / "sound.lance")
    allowed = Allowed(ALLOWED.memory_bytes, {"spin": 2.0, "hang": 0.3}.get(poison, ALLOWED.cpu_s))
    table = listed(f"file://{tmp_path}/{poison}.lance", ALLOWED)
    with pytest.raises(BatchprojError, match=said) as found:
        list(pages(table, allowed))
    assert type(found.value) is raised
    assert rows_of(f"file://{tmp_path}/sound.lance", ALLOWED) == 2


def test_only_a_remote_store_is_asked_with_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert "canary" not in source_lance._environment("file:///t.lance").values()
    assert "canary" in source_lance._environment("s3://bucket/t.lance").values()
