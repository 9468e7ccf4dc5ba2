"""What each technique is worth here: the same work with and without it, in turn.

    python benchmarks/techniques.py [NAME ...]

One JSON line a technique: median of the rounds' ratios (time without it / time with it) and their range, and where both
give vectors the least cosine between them. Models, corpora and batches are the benchmark's own; two threads.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from batchproj import fused_convolutions, packed_texts, recorded_steps, torch_runtime
from batchproj.bench import corpus, models
from batchproj.bench.store import store_with
from batchproj.collection.unit import Unit
from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.decoding import Fetched
from batchproj.embedding import UnitWorker
from batchproj.encode import Encoder, parse_config
from batchproj.lanes import UNITS_AT_ONCE, open_lanes
from batchproj.log_mel import LogMel
from batchproj.media import Segment
from batchproj.objectstore import list_objects
from batchproj.recipe import Recipe
from batchproj.schema import Modality
from batchproj.source import reading
from batchproj.space import open_space
from batchproj.space import resolve as resolve_space
from batchproj.torch_runtime import torch_dtype
from batchproj.weights import resolve
from batchproj.worker_environment import KEPT_MEMORY

ROUNDS = 7
THREADS = 2
READ_THREADS = Recipe().read_threads
TEXTS, PICTURES, PHOTOGRAPHS, SOUNDS, OBJECTS = 512, 64, 12, 48, 256
UNITS = 4
DISTANCE_S = 0.02
"""How much later the answers of a local store come: little. Amazon's documentation speaks of 100 to 200 ms for small
objects ("Best practices design patterns: optimizing Amazon S3 performance"), where requests at once gain more."""

Work = Callable[[], Any]


@dataclass(frozen=True)
class Technique:
    """`without` and `with_it` do the same; what they return is compared where it is vectors (N, D)."""

    about: str
    without: Work
    with_it: Work


@cache
def encoder(modality: Modality, **fields: Any) -> Encoder:
    """The builtin's encoder with other settings."""
    member = getattr(open_space("builtin").space, str(modality))
    config = parse_config({**member.encoder, **fields}, "technique")
    return config.build(resolve(config.model, config.revision, config.digest), modality, THREADS)


@cache
def texts() -> list[Segment]:
    return [Segment(corpus.sentence([1, number])) for number in range(TEXTS)]


@cache
def pictures() -> list[Segment]:
    spec = encoder(Modality.IMAGE).spec
    return [decode_image(corpus.icon([1, number]), spec, Limits())[0] for number in range(PICTURES)]  # type: ignore[arg-type]


@cache
def photographs() -> list[bytes]:
    return [corpus.photograph([1, number]) for number in range(PHOTOGRAPHS)]


@cache
def sounds() -> list[models.Array]:
    draw = np.random.default_rng(1)
    return [draw.standard_normal(int(16_000 * seconds)).astype(np.float32) for seconds in draw.uniform(1, 3, SOUNDS)]


def padded_texts(dtype: torch.dtype) -> Work:
    """The usual loop: 64 at a time, in the order they come, padded to the longest."""
    tokenizer, model = models.text_model(dtype=dtype, add_pooling_layer=False)

    def work() -> models.Array:
        found = []
        for at in range(0, TEXTS, 64):
            some = [str(text.data) for text in texts()[at : at + 64]]
            tokens = tokenizer(some, padding=True, truncation=True, max_length=models.MAX_TOKENS, return_tensors="pt")
            with torch.inference_mode():
                found.append(models.mean_pooled(model(**tokens).last_hidden_state, tokens["attention_mask"]).numpy())
        return np.concatenate(found)

    return work


def in_layout(memory_format: torch.memory_format) -> Work:
    """EfficientNet-lite0 in bf16, or what stands for it here, on one batch, its weights and input in this layout."""
    network = models.image_network().to(torch_dtype("bf16")).to(memory_format=memory_format)
    batch = np.stack([np.asarray(picture.data) for picture in pictures()[:8]])
    pixels = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1).to(torch_dtype("bf16"))
    pixels = pixels.contiguous(memory_format=memory_format)

    def work() -> models.Array:
        with torch.inference_mode():
            return np.concatenate([network(pixels).float().numpy() for _ in range(PICTURES // 8)])

    return work


def decoded_whole() -> list[Any]:
    """All pixels of a photograph, then the resize."""
    found = []
    for data in photographs():
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        scale = 256 / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        found.append(picture.resize(size, Image.Resampling.BICUBIC))
    return found


def decoded_scaled() -> list[Any]:
    spec = encoder(Modality.IMAGE).spec
    return [decode_image(data, spec, Limits()) for data in photographs()]  # type: ignore[arg-type]


def mels(real: bool) -> Work:
    """Log-mel spectrograms of 30 s: of the real samples and a constant after them, or of padded samples."""
    log_mel, extractor = LogMel(80), models.feature_extractor()
    if real:
        return lambda: [log_mel(samples, 3_000) for samples in sounds()]
    return lambda: [models.padded_mels(extractor, [samples]) for samples in sounds()]


def heard(window: str) -> Work:
    whisper = encoder(Modality.AUDIO, window=window)
    clips = [Segment(samples, 0.0, len(samples) / 16_000) for samples in sounds()[:8]]
    return lambda: whisper.encode(clips)


def in_lanes(count: int, modality: Modality) -> Work:
    """A batch on all cores after another, or as many side by side as there are lanes."""
    chosen, given = encoder(modality), texts() if modality is Modality.TEXT else pictures()

    def work() -> models.Array:
        open_lanes(count)
        torch.set_num_threads(THREADS)
        return chosen.encode(given)

    return work


def built(modality: Modality, *, prepacked: bool) -> Encoder:
    """An encoder of its own, with weights laid out beforehand or not."""
    member = getattr(open_space("builtin").space, str(modality))
    config = parse_config(dict(member.encoder), "technique")
    with nullcontext() if prepacked else patch.object(packed_texts, "prepack", lambda _network: 0):
        return config.build(resolve(config.model, config.revision, config.digest), modality, THREADS)


def stepping(modality: Modality, *, is_recorded: bool) -> Work:
    """Batches whose steps Python runs one by one, or a record."""
    own, given = built(modality, prepacked=True), texts() if modality is Modality.TEXT else pictures()

    def work() -> models.Array:
        with patch.object(recorded_steps, "AFTER", 1 if is_recorded else sys.maxsize):
            return own.encode(given)

    return work


def laid_out(prepacked: bool) -> Work:
    own = built(Modality.TEXT, prepacked=prepacked)
    return lambda: own.encode(texts())


def convolving(*, fused: bool) -> Work:
    with nullcontext() if fused else patch.object(fused_convolutions, "gains", lambda _dtype: False):
        own = built(Modality.IMAGE, prepacked=True)
    return lambda: own.encode(pictures())


def without_instructions(modality: Modality, *, emulated: bool) -> Work:
    """bf16 as torch emulates it where the CPU has no instructions for it, or fp32 in its stead."""
    with patch.object(torch_runtime, "is_slow_in_bf16", lambda: False) if emulated else nullcontext():
        own = built(modality, prepacked=True)
    given = (texts() if modality is Modality.TEXT else pictures())[:64]
    return lambda: own.encode(given)


LENGTH, WIDTH, HEADS = 26, 32, 12


def attending(filled: bool) -> Work:
    """Attention within texts of 26 tokens in a row of 512, their keys filled up to 32 with what follows or not."""
    count = 512 // LENGTH
    shape = (1, 512, HEADS, WIDTH)
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
    stretches = torch.tensor([(count, LENGTH, 0, False)])
    own = [
        each[0, :, : count * LENGTH].view(HEADS, count, LENGTH, WIDTH).transpose(0, 1) for each in (query, key, value)
    ]

    def work() -> None:
        with torch.inference_mode():
            for _ in range(100):
                if filled:
                    packed_texts._within(query, key, value, stretches, None)
                else:
                    torch.nn.functional.scaled_dot_product_attention(*own)

    return work


def one_by_one(together: bool) -> Work:
    """Texts of which every second one is there twice, with and without knowing so."""
    text = encoder(Modality.TEXT)
    every = [texts()[number // 2] for number in range(TEXTS)]
    if not together:
        return lambda: text.encode(every)
    return lambda: np.repeat(text.encode(every[::2]), 2, axis=0)


def computing(threads: int) -> Work:
    """As an actor of Ray's that says nothing of threads, or with as many as there are cores."""
    text = encoder(Modality.TEXT)

    def work() -> models.Array:
        open_lanes(threads)
        torch.set_num_threads(threads)
        return text.encode(texts())

    return work


def loading(kept: bool) -> Work:
    """A model that is loaded for each of a few batches, or once."""
    member = resolve_space(open_space("builtin")).members[Modality.TEXT]
    held = member.load(THREADS)

    def work() -> models.Array:
        parts = [texts()[at::UNITS] for at in range(UNITS)]
        return np.concatenate([(held if kept else member.load(THREADS)).encode(part) for part in parts])

    return work


def in_units(at_once: int, folder: Path) -> Work:
    """Units of PNG, decoded, encoded, projected and written one after the other, or one beside the other."""
    space = resolve_space(open_space("builtin"))
    worker = UnitWorker(space.members[Modality.IMAGE], space.dim, frozenset(space.members), Limits(), THREADS)
    worker.load()
    icons = [corpus.icon([1, number]) for number in range(2 * PICTURES)]

    def embed(number: int) -> models.Array:
        found = enumerate(icons)
        items = [Fetched(f"{at}", f"{at}.png", None, "", data, _digest(data), f"{at}.png") for at, data in found]
        unit = Unit(name=f"{number}", run="1", task="embed", modality=Modality.IMAGE, items=len(items), bytes=0)
        output = worker.embed(unit, items, None, lambda _: None)
        for name in ("vectors", "features"):
            pq.write_table(getattr(output, name), folder / f"{name}-{number}.parquet")
        return np.stack(output.vectors["vector"].to_numpy(zero_copy_only=False))

    def work() -> models.Array:
        with ThreadPoolExecutor(at_once) as pool:
            return np.concatenate(list(pool.map(embed, range(UNITS))))

    return work


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def encoded_pictures() -> models.Array:
    return np.concatenate([encoder(Modality.IMAGE).encode(pictures()) for _ in range(UNITS)])


def told_of_memory(environment: dict[str, str]) -> Work:
    """Pictures encoded by another process: glibc reads its environment when a process starts."""
    pool = _open.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    others = {name: value for name, value in os.environ.items() if name not in KEPT_MEMORY}
    with patch.dict(os.environ, {**others, **environment}, clear=True):
        pool.submit(encoded_pictures).result()  # it starts with the first call
    return lambda: pool.submit(encoded_pictures).result()


def requested(threads: int, distance_s: float) -> Work:
    """Small objects of a local S3, so many requests at once."""
    found = [listed for page in list_objects(_store()) for listed in page]
    rows = [{"uri": each.uri, "source_version": each.version, "size": each.size, "place": None} for each in found]

    def later(*asked: Any) -> bytes:
        time.sleep(distance_s)
        return read(*asked)

    read = reading.read_pinned

    def work() -> None:
        with patch.object(reading, "read_pinned", later):
            assert all(isinstance(each, bytes) for each in reading.read_items(rows, 2**20, threads))

    return work


@cache
def _scratch() -> Path:
    return Path(_open.enter_context(tempfile.TemporaryDirectory()))


@cache
def _store() -> str:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(OBJECTS):
            Path(folder, f"{number}.txt").write_text(corpus.sentence([1, number]))
        return _open.enter_context(store_with(Path(folder)))


_open = ExitStack()
"""What is there until all is measured."""


def imported(collecting: bool) -> Work:
    """A process that imports what a query needs, Python looking for garbage meanwhile or not."""
    program = "import lancedb, torch, transformers.models.bert.modeling_bert"
    if not collecting:
        program = f"from batchproj.importing import importing\nwith importing():\n    {program}"
    return lambda: subprocess.run([sys.executable, "-c", program], check=True)


def imported_lancedb(is_plain: bool) -> Work:
    """A process that imports LanceDB as Python does, or as `index` has it done."""
    before = "" if is_plain else "    with validators_when_used():\n        import lance_namespace\n"
    program = f"from batchproj.importing import *\nwith importing():\n{before}    import lancedb"
    return lambda: subprocess.run([sys.executable, "-c", program], check=True)


def techniques() -> dict[str, Callable[[], Technique]]:
    """By name, each made when it is wanted."""
    text, image = Modality.TEXT, Modality.IMAGE
    return {
        "bf16-text": lambda: Technique(
            "bf16 weights (fp32 where there is no bf16), pooled in fp32, on short texts",
            lambda: encoder(text, dtype="fp32").encode(texts()),
            lambda: encoder(text).encode(texts()),
        ),
        "no-bf16-text": lambda: Technique(
            "short texts: fp32 instead of bf16, on a CPU without instructions for it",
            without_instructions(text, emulated=True),
            without_instructions(text, emulated=False),
        ),
        "no-bf16-image": lambda: Technique(
            "pictures: the same",
            without_instructions(image, emulated=True),
            without_instructions(image, emulated=False),
        ),
        "packed-text": lambda: Technique(
            "texts laid end to end against 64 at a time, padded; both bf16, or what stands for it here",
            padded_texts(torch_dtype("bf16")),
            lambda: encoder(text).encode(texts()),
        ),
        "usual-text": lambda: Technique(
            "both together against the usual loop in fp32",
            padded_texts(torch.float32),
            lambda: encoder(text).encode(texts()),
        ),
        "lanes-text": lambda: Technique(
            "texts: batches side by side, a core each, against each on all cores",
            in_lanes(1, text),
            in_lanes(THREADS, text),
        ),
        "lanes-image": lambda: Technique("pictures: the same", in_lanes(1, image), in_lanes(THREADS, image)),
        "recorded-text": lambda: Technique(
            "texts: steps recorded against run by Python",
            stepping(text, is_recorded=False),
            stepping(text, is_recorded=True),
        ),
        "recorded-image": lambda: Technique(
            "pictures: the same", stepping(image, is_recorded=False), stepping(image, is_recorded=True)
        ),
        "prepacked": lambda: Technique(
            "texts: linear layers' weights laid out once", laid_out(prepacked=False), laid_out(prepacked=True)
        ),
        "filled-keys": lambda: Technique(
            "attention within texts of 26 tokens, keys filled up to 32", attending(filled=False), attending(filled=True)
        ),
        "bf16-image": lambda: Technique(
            "bf16 (fp32 where there is none) behind the first stage of EfficientNet-lite0, against plain fp32",
            lambda: encoder(image, dtype="fp32").encode(pictures()),
            lambda: encoder(image).encode(pictures()),
        ),
        "channels-last": lambda: Technique(
            "channels last, in bf16, or what stands for it here",
            in_layout(torch.contiguous_format),
            in_layout(torch.channels_last),
        ),
        "fused-image": lambda: Technique(
            "EfficientNet-lite0: convolutions that apply their activation and take uneven padding as they go",
            convolving(fused=False),
            convolving(fused=True),
        ),
        "scaled-jpeg": lambda: Technique(
            "JPEG of 1600 to 2400 px decoded at a reduced scale, then resized", decoded_whole, decoded_scaled
        ),
        "real-mel": lambda: Technique("log-mel of the real samples of 1 to 3 s", mels(real=False), mels(real=True)),
        "real-window": lambda: Technique(
            "Whisper on a sound's own length instead of 30 s (another preprocessing, in the fingerprint)",
            heard("padded"),
            heard("real"),
        ),
        "duplicates": lambda: Technique("half of the texts are there twice", one_by_one(False), one_by_one(True)),
        "threads": lambda: Technique(
            "texts: as many threads as there are cores, against one", computing(1), computing(THREADS)
        ),
        "kept-model": lambda: Technique(
            f"{TEXTS} texts in {UNITS} parts, the model loaded once", loading(kept=False), loading(kept=True)
        ),
        "units-at-once": lambda: Technique(
            f"{UNITS} units of {2 * PICTURES} PNG: one is decoded and written while another is encoded",
            in_units(1, _scratch()),
            in_units(UNITS_AT_ONCE, _scratch()),
        ),
        "kept-memory": lambda: Technique(
            "EfficientNet-lite0: glibc keeps what a step has given back for the next one",
            told_of_memory({}),
            told_of_memory(KEPT_MEMORY),
        ),
        "gets-at-once": lambda: Technique(
            f"{OBJECTS} small objects of a local S3 on the same cores, {READ_THREADS} requests at once",
            requested(1, 0),
            requested(READ_THREADS, 0),
        ),
        "gets-at-a-distance": lambda: Technique(
            f"{OBJECTS} of them that come {DISTANCE_S:g} s later, {READ_THREADS} requests at once",
            requested(1, DISTANCE_S),
            requested(READ_THREADS, DISTANCE_S),
        ),
        "imports": lambda: Technique(
            "imports of lancedb, torch and a transformers model without looking for garbage, whole processes",
            imported(collecting=True),
            imported(collecting=False),
        ),
        "lancedb": lambda: Technique(
            "the import of LanceDB without the validators of its HTTP client, whole processes",
            imported_lancedb(is_plain=True),
            imported_lancedb(is_plain=False),
        ),
    }


def measure(technique: Technique) -> dict[str, Any]:
    """Interleaved rounds after one of each that is not counted."""
    one, other = technique.without(), technique.with_it()
    ratios = []
    for _ in range(ROUNDS):
        took = []
        for work in (technique.without, technique.with_it):
            begun = time.perf_counter()
            work()
            took.append(time.perf_counter() - begun)
        ratios.append(took[0] / took[1])
    told = {
        "about": technique.about,
        "times_as_fast": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        told["least_cosine"] = round(_least_cosine(one, other), 5)
    return told


def _least_cosine(one: models.Array, other: models.Array) -> float:
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
    return float((unit[0] * unit[1]).sum(axis=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = techniques()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(every))
    torch.set_num_threads(THREADS)
    with _open:
        for name in parser.parse_args().names or every:
            print(json.dumps({"technique": name, **measure(every[name]())}), flush=True)


if __name__ == "__main__":
    main()
