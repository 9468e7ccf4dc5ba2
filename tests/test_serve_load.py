"""Many clients at once, and requests that nobody thought of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client, embed_builtin, served, write_corpus

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("loaded")
    write_corpus(folder / "corpus")
    embed_builtin(folder / "corpus", folder / "c")
    with served(folder / "c") as asked:
        yield asked


@pytest.mark.long
def test_fifty_clients_see_no_error_but_429(client: Client) -> None:
    url = f"http://127.0.0.1:{client.port}"
    told = [sys.executable, str(ROOT / "benchmarks/service.py"), url, "--clients", "50", "--seconds", "15"]
    done = subprocess.run(told, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    print(seen)
    assert set(seen["answers"]) <= {"200", "429"}
    assert seen["answers"]["200"] > 100
    batches = client.get("/metrics").data.decode()
    count, total = (
        float(
            next(line for line in batches.splitlines() if line.startswith(f"batchproj_encode_batch_{what}")).split()[1]
        )
        for what in ("count", "sum")
    )
    assert total / count > 1.5  # several queries went through the model together


@pytest.mark.long
def test_no_request_that_the_openapi_allows_or_forbids_gives_500(client: Client, tmp_path: Path) -> None:
    program = shutil.which("schemathesis", path=f"{Path(sys.executable).parent}:/usr/bin")
    if program is None:
        pytest.skip("schemathesis is not installed")
    told = [program, "run", f"http://127.0.0.1:{client.port}/openapi.json", "--checks", "not_a_server_error"]
    done = subprocess.run(
        [*told, "--mode", "all", "--max-examples", "60", "--seed", "1", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
    passed = re.search(r"(\d+) generated, \1 passed", done.stdout)  # it may warn that few of its ids are found
    assert passed is not None, done.stdout[-3_000:]
    assert int(passed[1]) > 100, done.stdout[-3_000:]
