"""Searches over HTTP, by whatever can be searched by, on a real server and the shipped space."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import COLOURS, Client, embed_builtin, picture, served, write_corpus

import batchproj
from batchproj.search import Collection

KEYS = ["id", "item", "uri", "modality", "score", "segment", "start", "end", "pair", "text", "why"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    write_corpus(folder / "corpus")
    embed_builtin(folder / "corpus", folder / "c")
    return folder / "c"


@pytest.fixture(scope="module")
def client(collection: Path) -> Iterator[Client]:
    with served(collection) as asked:
        yield asked


def test_a_text_finds_what_the_library_finds(client: Client, collection: Path) -> None:
    answer = client.post({"text": "a frog", "k": 3})
    assert (answer.status, answer.headers["X-Batchproj-Run"]) == (200, "000001")
    told = answer.json()
    assert told["run"] == "000001"
    assert [list(hit) for hit in told["hits"]] == [KEYS] * 3
    assert told["hits"][0]["uri"].endswith("frog.txt")
    expected = batchproj.open(str(collection)).search("a frog", k=3)
    assert [hit["id"] for hit in told["hits"]] == [hit.id for hit in expected]
    assert [hit["score"] for hit in told["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-3)


@pytest.mark.parametrize("part", ["image", "file"])
def test_a_picture_finds_itself(client: Client, part: str) -> None:
    answer = client.form(**{part: ("a.png", picture(COLOURS["apple"]))}, k="2", modality="image")
    assert answer.status == 200, answer.data
    hits = answer.json()["hits"]
    assert hits[0]["uri"].endswith("apple.png")
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert len(hits) == 2


def test_a_sound_finds_itself_and_says_when(client: Client, collection: Path) -> None:
    data = (collection.parent / "corpus/tone.flac").read_bytes()
    hit = client.form(file=("x", data), k="1").json()["hits"][0]
    assert (hit["modality"], hit["start"], hit["end"]) == ("audio", 0, 3)
    assert hit["score"] == pytest.approx(1, abs=1e-2)


def test_more_like_an_item_leaves_it_out(client: Client) -> None:
    frog = client.id_of("frog.txt")
    found = client.names(id=frog, k=50)
    assert "frog.txt" not in found
    assert len(found) == len(client.names(text="x", k=50)) - 1
    assert found[0].endswith(".txt")


def test_what_is_searched_by_is_weighed_and_subtracted(client: Client) -> None:
    names = client.names(text="a frog", k=50, modality="text")
    assert names[0] == "frog.txt"
    both = {"text": "a frog", "id": client.id_of("sky.txt"), "modality": "text"}
    assert client.names(**both, weights={"text": 1, "id": 0.01})[0] == "frog.txt"
    assert client.names(**{**both, "text": "a banana"}, weights={"text": 0.01, "id": 1})[0] != "banana.txt"
    against = client.search(text="a frog", **{"not": ["a picture of a frog"]}, k=50, modality="text")
    plain = {hit["id"]: hit["score"] for hit in client.search(text="a frog", k=50, modality="text")}
    frog = client.id_of("frog.txt")
    assert next(hit["score"] for hit in against if hit["id"] == frog) < plain[frog] - 0.05
    by_id = client.search(text="a frog", not_id=[client.id_of("apple.txt")], k=50)
    assert all(not hit["uri"].endswith("apple.txt") for hit in by_id)
    nothing = client.post({"text": "frog", "not": ["frog"], "weights": {"not": 1}})
    assert (nothing.status, "cancel each other out" in nothing.json()["detail"]) == (422, True)


def test_the_words_of_python_and_the_command_line_are_taken_too(client: Client) -> None:
    apple, sky = map(client.id_of, ("apple.txt", "sky.txt"))
    for ours, theirs in (
        ({"id": apple}, {"like": apple}),
        ({"text": "a frog", "not": ["sky"]}, {"text": "a frog", "unlike": ["sky"]}),
        (
            {"id": apple, "text": "a frog", "weights": {"id": 3, "not": 2}, "not": ["sky"]},
            {"like": apple, "text": "a frog", "weights": {"like": 3, "unlike": 2}, "unlike": ["sky"]},
        ),
    ):
        assert client.search(**ours, k=9) == client.search(**theirs, k=9)
    assert client.search(id=sky, k=1) != client.search(id=apple, k=1)


PROGRAMS_WORDS = ("--", "Input should", "permitted", "str_", "valid ", "validation", "Traceback")


def test_what_is_wrong_is_said_in_words_of_http(client: Client) -> None:
    """Neither options of a command line nor what pydantic says of its types."""
    for document in (
        *({"text": "a", "k": k} for k in (0, 1.5, "x", None, [1])),
        *({"text": text} for text in ("", 5, None, ["a"], "a" * 10_001)),
        *({"text": "a", "filters": each} for each in (1, [1], [{}], {"field": "text"})),
        *(
            {"text": "a", "filters": [{"field": field, "op": "eq", "value": "x"}]}
            for field in ("nothing", "metadata.no")
        ),
        *({"text": "a", "filters": [{"field": "text", "op": op, "value": 1}]} for op in ("eq", "in", "lt", "is_null")),
        *({"text": "a", "weights": weights} for weights in ({"text": "x"}, {"x": 1}, [1], {"text": 101})),
        *({"text": "a", "not": each} for each in ("x", [1], ["x"] * 11, [""])),
        *({"text": "a", name: "maybe"} for name in ("hybrid", "group", "balance", "offset", "modality", "run")),
        *({name: "x"} for name in ("image", "audio", "video", "file", "where", "id", "url")),
        *(b"", b"{", b"[]", b"nothing", b'"a"', b'{"text": 1e400}'),
    ):
        answer = client.post(document)
        assert 400 <= answer.status < 500, (document, answer.data)
        told = answer.json()["detail"].replace("--allow-url-host", "")  # that is for whoever runs it
        assert not [each for each in PROGRAMS_WORDS if each in told], (document, told)


def test_hybrid_finds_words_and_says_why(client: Client) -> None:
    hits = client.search(text="caption", hybrid=True, k=50)
    first = hits[0]
    assert (first["text"], first["why"]) == ("<script>alert(1)</script> a caption", "both")
    assert {hit["why"] for hit in hits[1:]} == {"vector"}
    plain = {hit["id"]: hit["score"] for hit in client.search(text="caption", k=50)}
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(plain, abs=1e-3)
    none = client.post({"id": first["id"], "hybrid": True})
    assert (none.status, "give a text" in none.json()["detail"]) == (422, True)


def test_pages_follow_each_other(client: Client) -> None:
    everything = [hit["id"] for hit in client.search(text="a frog", k=50)]
    pages = [hit["id"] for offset in range(0, 20, 4) for hit in client.search(text="a frog", k=4, offset=offset)]
    assert pages == everything
    assert client.search(text="a frog", k=4, offset=500) == []


@pytest.mark.parametrize(
    ("document", "status", "said"),
    [
        ({}, 422, "give a query"),
        ({"text": ""}, 422, "text: "),
        ({"text": "  \n "}, 422, "blank"),
        ({"text": "a", "k": 0}, 422, "k: "),
        ({"text": "a", "k": 1001}, 422, "k: "),
        ({"text": "a", "offset": -1}, 422, "offset: "),
        ({"text": "a", "k": 1000, "offset": 9_999}, 422, "offset is 9999"),
        ({"text": "a", "modality": "smell"}, 422, "modality: "),
        ({"text": "a", "modality": "video"}, 422, "no modality 'video'"),
        ({"text": "a", "colour": "red"}, 422, "colour: there is no such field; known are text, id, url, k, "),
        ({"text": "a", "modalty": "image"}, 422, "modalty: there is no such field; did you mean 'modality'?"),
        ({"text": "a", "run": 5}, 422, "run: "),
        ({"image": "a.png"}, 422, "image: expected a file, as a part of a form, as curl sends it with -F image=@FILE"),
        ({"id": "a", "like": "b"}, 422, "like: it is another word for id; give one of the two"),
        (b'{"text": "a", "k": 1e400}', 422, "k: expected a finite number, not inf"),
        ({"text": "a", "k": "many"}, 422, "k: expected a whole number, not 'many'"),
        (
            b'{"text": "a", "filters": [{"field": "text", "op": "eq", "value": 1e400}]}',
            422,
            "filters.0.value: expected a text, a finite number, true or false, or a list of at most 1,000 of these",
        ),
        ({"text": "a", "filters": [{"field": "text"}]}, 422, "filters.0.op: it is missing"),
        ({"text": "a" * 10_001}, 422, "text: "),
        ({"id": "nobody"}, 422, "has no item 'nobody'"),
        ({"text": "a", "weights": {"text": -1}}, 422, "weights"),
        ({"text": "a", "weights": {"smell": 1}}, 422, "weights"),
        ({"text": "a", "balance": True}, 422, "batchproj evaluate"),
        ({"url": "https://example.com/a.png"}, 422, "search by URL is off"),
        (b'{"text": "\\ud800"}', 422, "document"),
        (b'{"text": NaN}', 422, "text: "),
        (b"[" * 100_000, 422, "document"),
        (b"", 422, "document"),
        ([1], 422, "document"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_in_one_line(client: Client, document: Any, status: int, said: str) -> None:
    answer = client.post(document)
    assert (answer.status, said in answer.json()["detail"]) == (status, True), answer.data
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"picture": ("a.png", b"x")}, 422, "no file 'picture' is expected"),
        ({"image": ("a.png", b"")}, 422, "0 bytes"),
        ({"image": ("a.png", picture((1, 2, 3))[:500])}, 422, "truncated"),
        ({"image": ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, 422, "SVG is not opened"),
        ({"audio": ("a.png", picture((1, 2, 3)))}, 422, "a.png is image, not audio; search by it as image"),
        ({"image": "notafile"}, 422, "image: expected a file, as a part of a form"),
        ({"video": ("a.png", picture((1, 2, 3)))}, 422, "no encoder for video"),
        ({"file": ("a.exe", b"MZ\0\0\xff\xfe" * 100)}, 422, "cannot be searched by"),
        ({"text": "a", "filters": "{"}, 422, "'filters' of a form is JSON"),
        ({"text": "a", "k": "many"}, 422, "k: "),
    ],
)
def test_what_is_wrong_with_a_form_is_said_in_one_line(
    client: Client, fields: dict[str, Any], status: int, said: str
) -> None:
    answer = client.form(**fields)
    assert (answer.status, said in answer.json()["detail"]) == (status, True), answer.data


def test_only_json_and_forms_are_read(client: Client) -> None:
    assert client.post(b"<a/>", **{"Content-Type": "text/xml"}).status == 415
    assert client.post(b"--x", **{"Content-Type": "multipart/form-data"}).status == 400
    assert client.get("/search").status == 405


def test_the_counts_the_ledger_and_the_map(client: Client) -> None:
    stats = client.json("/stats")
    assert {name: each["items"] for name, each in stats["modalities"].items()} == {"text": 6, "image": 5, "audio": 1}
    assert (stats["run"], stats["rows"], stats["items"], stats["balance"]) == ("000001", 12, 12, False)
    assert [(run["run"], run["live"]) for run in client.json("/runs")["runs"]] == [("000001", True)]
    points = client.json("/map")["points"]
    assert len(points) == 12
    assert all(-1 <= point[axis] <= 1 for point in points for axis in "xy")
    assert {"status": "ok", "run": "000001"}.items() <= client.json("/health").items()


def test_metrics_count_by_route_and_status(client: Client) -> None:
    client.search(text="counted once")
    client.search(text="counted once")
    client.get("/no/such/place")
    text = client.get("/metrics").data.decode()
    assert 'batchproj_requests_total{endpoint="/search",status="200"}' in text
    assert 'batchproj_requests_total{endpoint="other",status="404"}' in text
    assert 'batchproj_request_seconds_bucket{endpoint="/search",le="0.1"}' in text
    assert "batchproj_live_run 1.0" in text
    assert "no/such/place" not in text
    cached = next(line for line in text.splitlines() if line.startswith("batchproj_encode_cached_total"))
    assert float(cached.split()[1]) >= 1


def test_openapi_has_examples(client: Client) -> None:
    document = client.json("/openapi.json")
    content = document["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert content["application/json"]["schema"]["examples"][0]["text"] == "a red apple"
    assert set(document["paths"]) >= {"/items/{id}", "/items/{id}/media", "/items/{id}/thumbnail", "/stats", "/health"}


def test_the_library_says_the_same_of_several_things(client: Client, collection: Path) -> None:
    opened = Collection(str(collection))
    image = str(collection.parent / "corpus/frog.png")
    found = opened.search("a frog", image=image, unlike=["sky"], weights={"image": 0.3, "not": 0.2}, k=5)
    answer = client.form(
        text="a frog",
        image=("f.png", Path(image).read_bytes()),
        **{"not": json.dumps(["sky"]), "weights": json.dumps({"image": 0.3, "not": 0.2})},
        k="5",
    )
    assert [hit["id"] for hit in answer.json()["hits"]] == [hit.id for hit in found]
