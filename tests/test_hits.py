"""What a search gives in Python: a list, a table, a part of a notebook; and who asks a service from there."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from in_process import command
from serving import COLOURS, EVIL_NAME, EVIL_TEXT, Client, embed_builtin, picture, served, write_corpus

import batchproj
from batchproj import search
from batchproj.collection.ledger import Report
from batchproj.errors import TryLater, UsageError
from batchproj.hits import Hit
from batchproj.serve import client as module_client


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hits")
    write_corpus(folder / "corpus")
    embed_builtin(folder / "corpus", folder / "c")
    return folder / "c"


class Tags(HTMLParser):
    """The elements of a page's part, with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hits_are_a_list_and_a_table(collection: Path) -> None:
    hits = batchproj.open(str(collection)).search("a frog", k=10, modality="image")
    assert (len(hits), hits.run, isinstance(hits[0], Hit)) == (5, "000001", True)
    assert hits == list(hits)
    table = hits.to_arrow()
    assert isinstance(table, pa.Table)
    assert table["id"].to_pylist() == [hit.id for hit in hits]
    assert (table.schema.field("score").type, table.schema.field("segment").type) == (pa.float32(), pa.int32())
    frame = hits.to_pandas()
    assert list(frame["uri"]) == [hit.uri for hit in hits]


def test_a_notebook_shows_pictures_and_players_and_nothing_runs(collection: Path) -> None:
    hits = batchproj.open(str(collection)).search("a caption", k=20)
    shown = Tags(hits._repr_html_())
    kinds = {tag for tag, _ in shown.found}
    assert kinds == {"div", "figure", "img", "audio", "figcaption", "br", "blockquote"}
    assert all(not name.startswith("on") for _, attributes in shown.found for name in attributes)
    sources = [attributes["src"] or "" for tag, attributes in shown.found if tag in ("img", "audio")]
    assert len(sources) == 6
    assert all(re.match(r"data:(image/jpeg|audio/(x-)?flac);base64,[A-Za-z0-9+/=]+$", each) for each in sources)
    assert EVIL_NAME in shown.text
    assert EVIL_TEXT in shown.text


def test_a_file_that_is_gone_is_said_in_its_place(collection: Path) -> None:
    file = collection.parent / "corpus/sky.png"
    data, opened = file.read_bytes(), batchproj.open(str(collection))
    hits = opened.search("sky", k=20)
    file.unlink()
    try:
        assert "gone since it was listed" in Tags(hits._repr_html_()).text
    finally:
        file.write_bytes(data)


def test_the_client_asks_side_by_side(collection: Path) -> None:
    token = "a-token-of-enough-letters"

    async def ask(url: str) -> None:
        async with module_client.Client(url, token) as client:
            words, image = await asyncio.gather(
                client.search("a frog", k=1), client.search(image=picture(COLOURS["apple"]), k=1, modality="image")
            )
            assert (words.run, words.hits[0].uri.rpartition("/")[2]) == ("000001", "frog.txt")
            assert image.hits[0].uri.endswith("apple.png")
            both = await client.search("a frog", file=str(collection.parent / "corpus/sky.png"), weights={"file": 0.01})
            assert both.hits[0].uri.endswith("frog.txt")
            assert (await client.item(words.hits[0].id))["text"] == "a picture of a frog"
            assert await client.media(words.hits[0].id) == b"a picture of a frog"
            assert (await client.stats())["rows"] == 12
            with pytest.raises(UsageError, match="answered 422: k: "):
                await client.search("a", k=0)
        async with module_client.Client(url) as stranger:
            with pytest.raises(UsageError, match="answered 401"):
                await stranger.stats()
        async with module_client.Client("http://127.0.0.1:9") as nobody:
            with pytest.raises(TryLater, match="cannot be asked"):
                await nobody.stats()

    with served(collection, token=token) as server:
        assert isinstance(server, Client)
        asyncio.run(ask(f"http://127.0.0.1:{server.port}"))


def test_the_readmes_retriever_works_as_written(collection: Path) -> None:
    @dataclass
    class Document:
        page_content: str
        metadata: dict[str, Any]

    readme = (Path(__file__).parent.parent / "README.md").read_text()
    line = re.search(r"`(\[Document\([^`]+\])`", readme)
    assert line is not None
    found = eval(line[1], {"Document": Document, "frogs": batchproj.open(collection), "question": "a frog"})
    assert len(found) == 5
    assert found[0].page_content == "a picture of a frog"
    assert found[0].metadata["uri"].endswith("frog.txt")


def test_what_a_model_is_is_found_out_once(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[object] = []
    resolve = search.resolve_member
    monkeypatch.setattr(search, "resolve_member", lambda *asked: digested.append(asked) or resolve(*asked))
    opened = batchproj.open(collection)
    for words in ("a frog", "an apple", "the sky"):
        opened.search(words, k=1)
    assert len(digested) == 1


def test_what_is_given_wrongly_is_said(embedded: tuple[Path, Report]) -> None:
    opened = batchproj.open(embedded[0])  # a Path as well
    with pytest.raises(UsageError, match=r"weight image=1: .* one of text"):
        opened.search("w1", weights={"image": 1})
    with pytest.raises(UsageError, match="weight text=nan"):
        opened.search("w1", weights={"text": float("nan")})
    assert {hit.modality for hit in opened.search("w1", where="modality=text")} == {"text"}
    done = command("search", embedded[0], "w1", "--weight", "text=abc")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "expected NAME=NUMBER" in done.stderr
