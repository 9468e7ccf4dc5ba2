"""Items over HTTP: what is known of them, their bytes by ranges, small pictures; whatever they are called and hold."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from films import film, seconds_of
from in_process import run, without_ray
from PIL import Image
from serving import COLOURS, EVIL_NAME, EVIL_TEXT, Client, embed_builtin, picture, served, write_corpus

from batchproj.embed import Options
from batchproj.errors import ItemFault
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality
from batchproj.serve import files
from batchproj.serve.files import _chunks, media_type, wanted_range
from batchproj.thumbnails import EDGE_PX, Thumbnails


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    write_corpus(folder / "corpus")
    embed_builtin(folder / "corpus", folder / "c")
    return folder


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[Client]:
    with served(made / "c") as asked:
        yield asked


def test_an_item_is_told_whole(client: Client) -> None:
    frog = client.id_of("frog.txt")
    told = client.json(f"/items/{frog}")
    assert (told["run"], told["id"], told["item"], told["pair"]) == ("000001", frog, frog, "frog")
    assert (told["text"], told["modality"], told["metadata"]) == ("a picture of a frog", "text", {})
    assert [segment["id"] for segment in told["segments"]] == [frog]
    assert "vector" not in told
    missing = client.get("/items/nobody")
    assert (missing.status, "nobody" in missing.json()["detail"]) == (404, True)
    assert client.get(f"/items/{'x' * 201}").status == 422


def test_bytes_are_those_of_the_object(client: Client, made: Path) -> None:
    answer = client.get(f"/items/{client.id_of('frog.png')}/media")
    assert answer.data == (made / "corpus/frog.png").read_bytes()
    assert (answer.headers["Content-Type"], answer.headers["X-Batchproj-Run"]) == ("image/png", "000001")
    again = client.get(f"/items/{client.id_of('frog.png')}/media", **{"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.data) == (304, b"")


@pytest.mark.parametrize("what", ["media", "thumbnail"])
def test_its_headers_can_be_asked_for_alone(client: Client, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = f"/items/{client.id_of('frog.png')}/{what}"
    whole = client.get(path)
    read: list[int] = []
    chunks = files._chunks
    monkeypatch.setattr(files, "_chunks", lambda *asked: read.append(1) or chunks(*asked))
    for headers in ({}, {"Range": "bytes=0-3"}):  # a range is for GET alone
        told = client.get(path, method="HEAD", **headers)
        assert (told.status, told.data) == (200, b"")
        for name in ("Content-Length", "Content-Type", "ETag", "X-Batchproj-Run", "X-Content-Type-Options"):
            assert told.headers[name] == whole.headers[name], name
    assert client.get(path, method="HEAD", **{"If-None-Match": whole.headers["ETag"]}).status == 304
    assert client.get(f"/items/nobody/{what}", method="HEAD").status == 404
    assert read == []


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=100-", 100, None), ("bytes=-7", -7, None)],
)
def test_a_part_is_sent_of_a_sound(client: Client, made: Path, asked: str, begin: int, end: int | None) -> None:
    whole = (made / "corpus/tone.flac").read_bytes()
    answer = client.get(f"/items/{client.id_of('tone.flac')}/media", Range=asked)
    part = whole[begin:end]
    first = whole.index(part) if begin < 0 else begin
    assert (answer.status, answer.data) == (206, part)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(part) - 1}/{len(whole)}"
    assert answer.headers["Content-Type"] == "audio/flac"
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_ranges_that_lie_outside_or_are_none(client: Client, made: Path) -> None:
    size = (made / "corpus/tone.flac").stat().st_size
    path = f"/items/{client.id_of('tone.flac')}/media"
    for outside in (f"bytes={size}-", "bytes=9-3", "bytes=-0", f"bytes={10**17}-"):
        answer = client.get(path, Range=outside)
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    for passed_over in ("bytes=-", "items=0-1", "bytes=0-1,4-5", "bytes=a-b", f"bytes={10**30}-"):
        assert client.get(path, Range=passed_over).status == 200
    assert wanted_range(f"bytes=0-{10**9}", 10) == (0, 10)
    assert wanted_range(None, 10) is None


def test_a_part_of_other_bytes_is_not_continued(client: Client, made: Path) -> None:
    path = f"/items/{client.id_of('tone.flac')}/media"
    tag = client.get(path).headers["ETag"]
    same = client.get(path, **{"Range": "bytes=5-9", "If-Range": tag})
    assert (same.status, len(same.data)) == (206, 5)
    for other in ('"another"', f"W/{tag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        whole = client.get(path, **{"Range": "bytes=5-9", "If-Range": other})
        assert (whole.status, whole.data) == (200, (made / "corpus/tone.flac").read_bytes())


def test_what_is_sent_ends_where_the_item_does(client: Client) -> None:
    view = client.service.live.view
    row = view.collection.rows_of(client.id_of("frog.txt"))[0]
    item = view.items.find(row["item"], row["uri"])

    async def sent() -> list[bytes]:
        return [piece async for piece in _chunks(item, 0, item.size + 9, item.read(0, 4))]

    assert b"".join(asyncio.run(asyncio.wait_for(sent(), 20))) == b"a picture of a frog"


def test_each_segment_has_a_picture_of_its_own(client: Client) -> None:
    view = client.service.live.view
    row = view.collection.rows_of(client.id_of("tone.flac"))[0]
    one, other = (client.service.thumbnail(view, {**row, "end": end}, None) for end in (1.0, 3.0))
    assert one.headers["ETag"] != other.headers["ETag"]
    assert client.service.thumbnail(view, {**row, "end": 1.0}, other.headers["ETag"]).status_code == 200


def test_a_name_that_wants_to_be_html_stays_a_name(client: Client, made: Path) -> None:
    evil = client.id_of(EVIL_NAME)
    answer = client.get(f"/items/{evil}/media")
    assert answer.data == (made / "corpus" / EVIL_NAME).read_bytes()
    assert answer.headers["Content-Disposition"] == "inline; filename*=UTF-8''" + (
        "%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.png"
    )
    assert client.json(f"/items/{evil}")["uri"].endswith(EVIL_NAME)  # as JSON, which a page shows as text


def test_a_text_is_never_a_page(client: Client) -> None:
    for name in ("page.txt", "script.txt"):
        answer = client.get(f"/items/{client.id_of(name)}/media")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert EVIL_TEXT.encode() == client.get(f"/items/{client.id_of('script.txt')}/media").data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "application/octet-stream"),
        (b"<!doctype html><script>alert(1)</script>", "application/octet-stream"),
        (b"<?xml version='1.0'?><svg/>", "application/octet-stream"),
        (b"%PDF-1.7", "application/octet-stream"),
        (b"PK\x03\x04" + bytes(60), "application/octet-stream"),
        (b"", "application/octet-stream"),
        (picture((1, 2, 3)), "image/png"),
        (picture((1, 2, 3), "JPEG"), "image/jpeg"),
        (picture((1, 2, 3), "TIFF"), "application/octet-stream"),
    ],
)
def test_only_media_are_shown_under_their_type(data: bytes, expected: str) -> None:
    assert media_type(data, Modality.IMAGE) == expected
    assert media_type(data, Modality.TEXT) == "text/plain; charset=utf-8"


def test_thumbnails_are_small_pictures(client: Client) -> None:
    answer = client.get(f"/items/{client.id_of('apple.png')}/thumbnail")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
    image = np.asarray(Image.open(io.BytesIO(answer.data)).convert("RGB"), int)
    assert image.shape == (EDGE_PX, EDGE_PX, 3)
    assert np.abs(image[EDGE_PX // 2, EDGE_PX // 2] - COLOURS["apple"]).max() < 12
    again = client.get(f"/items/{client.id_of('apple.png')}/thumbnail", **{"If-None-Match": answer.headers["ETag"]})
    assert again.status == 304
    wave = client.get(f"/items/{client.id_of('tone.flac')}/thumbnail")
    assert (wave.status, wave.headers["Content-Type"]) == (200, "image/png")
    text = client.get(f"/items/{client.id_of('frog.txt')}/thumbnail")
    assert (text.status, "no picture" in text.json()["detail"]) == (404, True)


def test_a_film_is_shown_where_its_segment_begins() -> None:
    data = film(seconds_of(6, 10))
    drawing = Thumbnails()
    for start, end, grey in [(0, 6, 20), (1, 2, 220), (3, 6, 160), (5, 6, 190)]:
        drawn, kind = drawing.draw(data, Modality.VIDEO, start, end)
        pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("L"), int)
        assert (kind, pixels.shape) == ("image/jpeg", (EDGE_PX, EDGE_PX))
        assert abs(pixels.mean() - grey) < 8, (start, end)


def test_the_waveform_is_that_of_its_segment(tmp_path: Path) -> None:
    import soundfile

    sound = np.zeros(5 * 16_000)
    sound[2 * 16_000 : 3 * 16_000] = 0.5
    soundfile.write(tmp_path / "a.flac", sound, 16_000)
    data = (tmp_path / "a.flac").read_bytes()
    drawing = Thumbnails()

    def heights(start: float, end: float) -> np.ndarray:
        drawn, _ = drawing.draw(data, Modality.AUDIO, start, end)
        return (np.asarray(Image.open(io.BytesIO(drawn)))[..., 3] > 0).sum(axis=0)

    whole = heights(0, 5)
    assert whole[:90].max() <= 2
    assert whole[110:145].min() > 80
    assert heights(2.1, 2.9).min() > 80
    track = film(seconds_of(2, 10), sound=True)
    assert drawing.draw(track, Modality.AUDIO, 0, 1, is_sound_track=True)[1] == "image/png"
    with pytest.raises(ItemFault):
        drawing.draw(data[:60], Modality.AUDIO, 0, 5)


@pytest.fixture
def changing(made: Path, tmp_path: Path) -> Iterator[tuple[Client, Path]]:
    """A service whose source may be changed under it."""
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    embed_builtin(tmp_path / "corpus", tmp_path / "c")
    with served(tmp_path / "c") as client:
        yield client, tmp_path / "corpus"


def test_an_object_that_is_gone_or_another_is_said_to_be_so(changing: tuple[Client, Path]) -> None:
    client, corpus = changing
    names = ("frog.png", "apple.png", "sky.png")
    frog, apple, sky = map(client.id_of, names)
    (corpus / "frog.png").unlink()
    (corpus / "apple.png").write_bytes(b"other bytes")
    (corpus / "sky.png").unlink()
    (corpus / "sky.png").symlink_to("/etc/passwd")
    for id, status, said in ((frog, 404, "gone"), (apple, 409, "since it was listed"), (sky, 409, "listed")):
        for what in ("media", "thumbnail"):
            answer = client.get(f"/items/{id}/{what}")
            assert (answer.status, said in answer.json()["detail"]) == (status, True), answer.data
            assert b"root:" not in answer.data
    assert client.json(f"/items/{frog}")["uri"].endswith("frog.png")  # what the table knows stays


@pytest.mark.parametrize("path", ["/items/..%2f..%2fetc%2fpasswd/media", "/items/file:%2f%2f%2fetc%2fpasswd/media"])
def test_a_path_is_no_id(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert b"root:" not in answer.data


def test_what_lies_in_tables_and_shards_is_sent_too(tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "t/pictures").mkdir(parents=True)
    inside, named = picture((9, 9, 9)), picture((200, 9, 9))
    (tmp_path / "t/pictures/a.png").write_bytes(named)
    table = [
        {"id": "inline", "bytes": base64.b64encode(inside).decode()},
        {"id": "named", "uri": "pictures/a.png", "caption": "w1 w2"},
        {"id": "words", "text": "w3 w4 w5"},
    ]
    (tmp_path / "t/t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    with tarfile.open(tmp_path / "t/s.tar", "w") as tar:
        for name, data in (("b.png", inside), ("b.txt", b"w5 w6 w7")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    options = Options(Recipe(units=Units(max_items=8)))
    with without_ray():
        run(tmp_path / "t/t.jsonl", tmp_path / "rows", tiny_space, options)
        run(tmp_path / "t/s.tar", tmp_path / "shard", tiny_space, options)
    with served(tmp_path / "rows") as client:
        for row in client.search(text="w1", k=9):
            data = client.get(f"/items/{row['id']}/media").data
            told = client.json(f"/items/{row['id']}")
            expected = named if told["metadata"] else b"w3 w4 w5" if row["modality"] == "text" else inside
            assert data == expected, row
            part = client.get(f"/items/{row['id']}/media", Range="bytes=2-5")
            assert (part.status, part.data) == (206, expected[2:6])
        # a link in the place of what a row names leads nowhere, even to bytes of the same size and time
        target, file = tmp_path / "outside.png", tmp_path / "t/pictures/a.png"
        info = file.stat()
        target.write_bytes(bytes(info.st_size))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
        file.unlink()
        file.symlink_to(target)
        found = client.search(text="w1 w2", filters=[{"field": "metadata.caption", "op": "eq", "value": "w1 w2"}])
        answer = client.get(f"/items/{found[0]['id']}/media")
        assert (answer.status, "a link is in its path" in answer.json()["detail"]) == (409, True)
    with served(tmp_path / "shard") as client:
        got = {row["modality"]: client.get(f"/items/{row['id']}/media").data for row in client.search(text="w1", k=9)}
        assert got == {"image": inside, "text": b"w5 w6 w7"}
        assert client.get(f"/items/{client.id_of('b.png')}/thumbnail").status == 200
