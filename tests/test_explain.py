"""Looking items up in a real collection: what made their vectors, or why they have none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from conftest import write_words

from batchproj.collection.ledger import Report
from batchproj.embed import Options, Watch, embed
from batchproj.errors import CollectionError, UsageError
from batchproj.explain import explain, lines
from batchproj.objectstore import Folder
from batchproj.space import open_space, resolve

pytestmark = pytest.mark.usefixtures("no_ray")


def run(source: object, collection: object, space: Path) -> Report:
    return embed(str(source), str(collection), resolve(open_space(str(space))), Options(), Watch())


def test_an_embedded_item_names_bytes_models_run_and_files(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, first = embedded
    write_words(corpus / "d0/item99.txt", 99)
    second = run(corpus, collection, tiny_space)
    file = corpus / "d1/item4.png"
    found = explain(str(collection), str(file))
    assert (found.uri, found.pair, found.status, found.modality) == (f"file://{file}", "d1/item4", "embedded", "image")
    assert (found.segments, found.size, found.now) == (1, file.stat().st_size, "unchanged")
    assert found.content_id == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found.made_by, found.run, found.space) == (first.run, second.run, "tiny")
    member = resolve(open_space(str(tiny_space))).members[found.modality]
    assert (found.encoder, found.projector) == (member.feature_doc, member.vector_doc)
    for name in (found.part, found.features):
        assert name
        assert (collection / name).is_file()
    assert (found.reason, found.detail, found.stage) == (None, None, None)
    assert lines(found)[0] == f"file://{file} is embedded: 1 image vector, pair d1/item4"
    assert f"made by {first.run}, live is {second.run}" in "\n".join(lines(found))
    assert explain(str(collection), str(corpus / "d0/item99.txt")).made_by == second.run


def test_paths_and_uris_find_the_same_item(
    corpus: Path, embedded: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, _ = embedded
    monkeypatch.chdir(corpus)
    by_uri = explain(str(collection), f"file://{corpus}/d0/item0.txt")
    assert explain(str(collection), "d0/item0.txt") == explain(str(collection), "./d0/../d0/item0.txt") == by_uri


def test_the_object_is_compared_with_what_was_read(corpus: Path, embedded: tuple[Path, Report]) -> None:
    collection, _ = embedded
    file = corpus / "d0/item0.txt"
    os.utime(file, ns=(0, 0))
    assert explain(str(collection), str(file)).now == "changed since"
    file.unlink()
    assert explain(str(collection), str(file)).now == "gone"


def test_an_item_in_quarantine_says_why(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    (corpus / "d0/item0.png").write_bytes((corpus / "d0/item0.png").read_bytes()[:150])
    report = run(corpus, tmp_path / "c", tiny_space)
    found = explain(str(tmp_path / "c"), str(corpus / "d0/item0.png"))
    assert (found.status, found.reason, found.stage, found.run) == ("quarantined", "truncated", "decode", report.run)
    assert found.detail
    assert (found.segments, found.made_by, found.part, found.encoder) == (0, None, None, None)
    assert lines(found)[0] == f"{found.uri} is in quarantine: truncated, {found.detail} (stage: decode)"


def test_an_unknown_item_is_refused_and_near_ones_are_named(corpus: Path, embedded: tuple[Path, Report]) -> None:
    collection, _ = embedded
    with pytest.raises(UsageError, match="has no item") as refused:
        explain(str(collection), str(corpus / "d1/item4.pgn"))
    assert f"nearest are file://{corpus}/d1/item4.png" in str(refused.value)
    with pytest.raises(UsageError, match=f"expected an item of file://{corpus}$"):
        explain(str(collection), "/zzz")


def test_without_a_collection_there_is_nothing_to_explain(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="no collection at"):
        explain(str(tmp_path / "c"), str(tmp_path / "a.txt"))
    assert not (tmp_path / "c").exists()


def test_objects_of_a_bucket_are_compared_whatever_their_name(s3_bucket: str, tiny_space: Path) -> None:
    source, collection = f"{s3_bucket}/photos", f"{s3_bucket}/c"
    folder = Folder(source)
    names = ["a.txt", "a.txt.bak", "b[1].txt", "c*.txt", "d?.txt", "[[e]].txt"]
    for number, name in enumerate(names):
        folder.write(name, f"w{number + 1} w2".encode())
    run(source, collection, tiny_space)
    assert [explain(collection, f"{source}/{name}").now for name in names] == ["unchanged"] * len(names)
    folder.write("b[1].txt", b"w9")
    folder.remove(["a.txt", "c*.txt"])
    now = {name: explain(collection, f"{source}/{name}").now for name in names}
    assert now == dict.fromkeys(names, "unchanged") | {"b[1].txt": "changed since", "a.txt": "gone", "c*.txt": "gone"}
