"""Fixtures shared by all tests: real servers, real processes, small real files."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

# before anything imports them: no hub, no chatter
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("LANCE_LOG", "error")

if TYPE_CHECKING:
    from batchproj.collection.ledger import Report

WORDS = [f"w{number}" for number in range(14)]
"""Vocabulary of the tiny text tower; its end mark is token 14, its padding 15."""


EXIT_S = 120


def pytest_unconfigure() -> None:
    """A thread that never ends would keep the process for ever after the last test: it ends, and says where it was."""
    faulthandler.dump_traceback_later(EXIT_S, exit=True)


@pytest.fixture(scope="session", autouse=True)
def _apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Descriptions of encoders that fixtures make, models and corpora stay out of the user's cache."""
    os.environ["BATCHPROJ_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that changes how encoders are described meets no description of another test's, and leaves none."""
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and services set how long store calls of their whole process are retried: no test meets another's."""
    from batchproj import retry

    monkeypatch.setattr(retry, "_budget_s", retry.USUAL_BUDGET_S)


@pytest.fixture(autouse=True)
def _scheduled_like_others() -> Iterator[None]:
    """A library that raises the priority of its caller stops the machine some tests later, and nothing tells why."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server in a process of its own; the standard AWS variables point to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, "moto server ended"
            assert time.monotonic() < deadline, "moto server did not start"
            time.sleep(0.1)
    # for the whole session, since Ray's workers inherit them when Ray starts
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    yield endpoint
    server.terminate()
    server.wait(10)


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """URL of a new bucket; nothing but the standard AWS variables leads there."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{s3_endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights in transformers' folder layout: 24-d, 32 px, a 14-word vocabulary."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-clip")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 16, "max_position_embeddings": 20, "eos_token_id": 14, "bos_token_id": 0}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    vocabulary = {**{word: number for number, word in enumerate(WORDS)}, "<end>": 14, "<pad>": 15}
    words = Tokenizer(models.WordLevel(vocabulary, WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 14)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    geometry = {"size": {"shortest_edge": 36}, "crop_size": 32, "do_center_crop": True, "resample": 3}
    moments = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**geometry, **moments}))
    return folder


@pytest.fixture(scope="session")
def tiny_space(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space file for text and images with the tiny CLIP."""
    file = tmp_path_factory.mktemp("tiny-space") / "space.yaml"
    encoder = f"{{encoder: {{kind: clip, model: {tiny_clip}}}}}"
    file.write_text(f"name: tiny\ndim: 24\ntext: {encoder}\nimage: {encoder}\n")
    return file


@pytest.fixture(scope="module")
def ray_here(s3_endpoint: str) -> Iterator[None]:
    """One Ray on this machine for all runs of a file's tests; while it waits it takes what other tests could have."""
    from batchproj.pipeline import ray_session

    with ray_session(verbose=False):
        yield


@pytest.fixture
def no_ray() -> Iterator[None]:
    """Runs are done in the test process, see in_process.py."""
    from in_process import without_ray

    with without_ray():
        yield


def write_picture(path: Path, seed: int) -> None:
    """A small picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 64)).save(path)


def write_words(path: Path, seed: int) -> None:
    """A few words of the tiny vocabulary that few other seeds give."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" ".join(np.random.default_rng(seed).choice(WORDS[1:], 6)))


@pytest.fixture(scope="session")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs of a picture and a text in three folders, never changed."""
    folder = tmp_path_factory.mktemp("pristine") / "corpus"
    for number in range(12):
        write_picture(folder / f"d{number % 3}" / f"item{number}.png", number)
        write_words(folder / f"d{number % 3}" / f"item{number}.txt", number)
    return folder


@pytest.fixture
def corpus(_pristine: Path) -> Path:
    """The twelve pairs, to change as one likes; for every test at one path and with equal times."""
    folder = _pristine.parent / "copy" / "corpus"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_pristine, folder)
    return folder


@pytest.fixture(scope="session")
def _first_run(_pristine: Path, tiny_space: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    from in_process import run, without_ray

    from batchproj.embed import Options
    from batchproj.recipe import Recipe, Units

    folder = _pristine.parent / "copy" / "corpus"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_pristine, folder)
    collection = tmp_path_factory.mktemp("first-run") / "c"
    with without_ray():
        return collection, run(folder, collection, tiny_space, Options(Recipe(units=Units(max_items=8))))


@pytest.fixture
def embedded(_first_run: tuple[Path, Report], corpus: Path, tmp_path: Path) -> tuple[Path, Report]:
    """A collection of the corpus after its first run, to change as one likes, and that run's report."""
    shutil.copytree(_first_run[0], tmp_path / "c")
    return tmp_path / "c", _first_run[1]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often items were read, by URI, in this process."""
    from batchproj.source import reading

    counted: Counter[str] = Counter()
    together = reading._read_together

    def read(items: list[reading._Item]) -> dict[int, reading.Read]:
        counted.update(item.uri for item in items)
        return together(items)

    monkeypatch.setattr(reading, "_read_together", read)
    return counted


@pytest.fixture
def denied_s3() -> Iterator[str]:
    """An endpoint that answers every S3 request as a bucket without permission does."""

    class Denied(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Denied) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
