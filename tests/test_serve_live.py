"""The live run under a service: switches that nobody notices, and models that are not the table's; on S3 as well."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import urllib3
from conftest import WORDS, write_picture
from in_process import OPTIONS, quiet, run, without_ray
from serving import Client, served

import batchproj
from batchproj.embed import Watch, embed
from batchproj.gc import gc
from batchproj.objectstore import Folder
from batchproj.space import open_space, resolve
from batchproj.switch import rollback
from batchproj.tags import Tags

SWITCHES = 20


@pytest.fixture
def collection(corpus: Path, tiny_space: Path, tmp_path: Path) -> Path:
    """The corpus after its first run."""
    with without_ray():
        run(corpus, tmp_path / "c", tiny_space)
    return tmp_path / "c"


def wait_for(client: Client, run_name: str) -> None:
    deadline = time.monotonic() + 60
    while client.json("/health")["run"] != run_name:
        assert time.monotonic() < deadline, "the switch was not taken up"
        time.sleep(0.02)


def test_twenty_switches_fail_and_mix_no_answer(collection: Path, corpus: Path, tiny_space: Path) -> None:
    for number in range(12):  # other texts on the same objects: a row tells which run it is of
        (corpus / f"d{number % 3}" / f"item{number}.txt").write_text(" ".join(WORDS[1 : 3 + number]))
    with without_ray():
        run(corpus, collection, tiny_space)
    of_run = {}
    for name in ("000001", "000002"):
        rollback(str(collection), name, quiet)
        table = batchproj.open(str(collection)).table()
        of_run[name] = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert of_run["000001"] != of_run["000002"]
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask(client: Client, number: int) -> None:
        pool = urllib3.PoolManager(retries=False)
        words = np.random.default_rng(number).choice(WORDS[1:], 3)
        body = json.dumps({"text": " ".join(words), "k": 24, "hybrid": bool(number % 2)})
        while not over.is_set():
            answer = pool.request(
                "POST",
                f"http://127.0.0.1:{client.port}/search",
                body=body,
                headers={"Content-Type": "application/json"},
            )
            if answer.status == 429:
                continue
            if answer.status != 200:
                wrong.append(f"{answer.status} {answer.data[:200]!r}")
                return
            told = answer.json()
            seen[told["run"]] += 1
            texts = {hit["id"]: hit["text"] for hit in told["hits"]}
            if texts != of_run[told["run"]] or answer.headers["X-Batchproj-Run"] != told["run"]:
                wrong.append(f"mixed: {told['run']}")

    with served(collection, poll_s=0.05) as client:
        askers = [threading.Thread(target=ask, args=(client, number)) for number in range(6)]
        for asker in askers:
            asker.start()
        for number in range(SWITCHES):
            target = ("000001", "000002")[number % 2]
            rollback(str(collection), target, quiet)
            wait_for(client, target)
        over.set()
        for asker in askers:
            asker.join()
    assert wrong == []
    assert min(seen["000001"], seen["000002"]) > 0


def test_an_encoder_stays_and_another_one_is_loaded(
    collection: Path, corpus: Path, tiny_space: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    with served(collection) as client:
        encoder = client.service._encoder
        before = dict(encoder._embedders)
        assert "batchproj_run_switches_total 0.0" in client.get("/metrics").data.decode()
        (corpus / "d0/item0.txt").write_text("w1 w2 w3")
        with without_ray():
            run(corpus, collection, tiny_space)
        wait_for(client, "000002")
        assert "batchproj_run_switches_total 1.0" in client.get("/metrics").data.decode()
        assert encoder._embedders == before
        other = tmp_path / "other.yaml"
        text = f"{{encoder: {{kind: clip, model: {tiny_clip}, dtype: fp32}}}}"
        other.write_text(f"name: other\ndim: 24\ntext: {text}\nimage: {text}\n")
        with without_ray():
            report = run(corpus, collection, other, replace(OPTIONS, force=True))
        assert (report.run, report.embedded) == ("000003", 24)
        wait_for(client, "000003")
        assert not set(encoder._embedders) & set(before)
        assert client.search(text="w1 w2 w3", k=1)[0]["score"] > 0.99


def test_a_query_without_the_tables_encoder_is_refused(tiny_clip: Path, tmp_path: Path, corpus: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(tiny_clip, gone)
    space = tmp_path / "space.yaml"
    encoder = f"{{encoder: {{kind: clip, model: {gone}}}}}"
    space.write_text(f"name: tiny\ndim: 24\ntext: {encoder}\nimage: {encoder}\n")
    with without_ray():
        embed(str(corpus), str(tmp_path / "c"), resolve(open_space(str(space))), OPTIONS, Watch())
    shutil.rmtree(gone)
    with served(tmp_path / "c") as client:
        answer = client.post({"text": "w1"})
        assert (answer.status, "model" in answer.json()["detail"]) == (409, True)
        points = client.json("/map")["points"]  # what needs no model is answered
        assert len(client.search(id=points[0]["id"], k=5)) == 5


def test_a_view_whose_files_are_gone_is_replaced(collection: Path, corpus: Path, tiny_space: Path) -> None:
    with served(collection, poll_s=600) as client:  # it does not look by itself
        assert client.post({"text": "w1"}).json()["run"] == "000001"
        for picture in corpus.rglob("*.png"):
            picture.unlink()
        write_picture(corpus / "new.png", 99)
        for words in corpus.rglob("*.txt"):
            words.write_text("w1 w2")
        with without_ray():
            run(corpus, collection, tiny_space, replace(OPTIONS, allow_mass_delete=True))
        gc(str(collection), quiet, keep=1, apply=True)
        assert "000001" not in Tags(client.service.live.view.collection._folder).runs()
        answer = client.post({"text": "w1 w2"})
        assert (answer.status, answer.json()["run"]) == (200, "000002")
        assert client.json("/health")["run"] == "000002"


def test_it_serves_a_collection_in_s3(s3_bucket: str, corpus: Path, tiny_space: Path) -> None:
    source = Folder(f"{s3_bucket}/source")
    for path in corpus.rglob("*.*"):
        source.write(str(path.relative_to(corpus)), path.read_bytes())
    with without_ray():
        run(f"{s3_bucket}/source", f"{s3_bucket}/c", tiny_space)
    with served(f"{s3_bucket}/c") as client:
        words = (corpus / "d0/item3.txt").read_text()
        hit = client.search(text=words, k=1, modality="text", hybrid=True)[0]
        assert (hit["text"], hit["why"]) == (words, "both")
        assert client.get(f"/items/{hit['id']}/media").data == words.encode()
        picture = client.id_of("d1/item4.png")
        whole = (corpus / "d1/item4.png").read_bytes()
        part = client.get(f"/items/{picture}/media", Range="bytes=10-99")
        assert (part.status, part.data) == (206, whole[10:100])
        assert client.get(f"/items/{picture}/thumbnail").status == 200
        source.write("d1/item4.png", whole + b"x")
        assert client.get(f"/items/{picture}/media").status == 409
        source.remove(["d1/item4.png"])
        assert client.get(f"/items/{picture}/media").status == 404
        with without_ray():
            report = run(f"{s3_bucket}/source", f"{s3_bucket}/c", tiny_space)
        assert report.deleted == 1
        wait_for(client, "000002")
        assert all(not each["uri"].endswith("d1/item4.png") for each in client.search(text="w1", k=100))
