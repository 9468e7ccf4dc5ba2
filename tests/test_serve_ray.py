"""The service on Ray Serve: the same answers, behind Ray's proxy."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import ray
import urllib3

from batchproj.collection.ledger import Report

serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)

TOKEN = "a-token-of-enough-letters"


@pytest.mark.long
def test_a_replica_answers_as_the_server_does(embedded: tuple[Path, Report], corpus: Path, tmp_path: Path) -> None:
    from batchproj.serve.deployment import Arguments, build

    (tmp_path / "token").write_text(TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"collection": str(embedded[0]), "token_file": str(tmp_path / "token")}
    assert ray.is_initialized()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build(Arguments(**told, replicas=1, cpus=1)))
        words = (corpus / "d0/item3.txt").read_text()
        pool, url = urllib3.PoolManager(retries=False, timeout=60), f"http://127.0.0.1:{port}"
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert pool.request("GET", f"{url}/stats").status == 401
        answer = pool.request("POST", f"{url}/search", json={"text": words, "k": 1, "modality": "text"}, headers=bearer)
        assert (answer.status, answer.json()["run"], answer.json()["hits"][0]["text"]) == (200, "000001", words)
        item = answer.json()["hits"][0]["id"]
        part = pool.request("GET", f"{url}/items/{item}/media", headers={**bearer, "Range": "bytes=0-1"})
        assert (part.status, part.data) == (206, words[:2].encode())
    finally:
        serve.shutdown()
