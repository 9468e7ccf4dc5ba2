"""Encoders on a GPU: what of the card's arithmetic they get, decoded or from files, and where the rest goes.

    python benchmarks/gpu.py [--only NAME ...] [--share-by N] [--tiny] [--out FILE]

Models have the sizes of published ones and random weights: speed does not depend on them. For each: the least cosine
to fp32 on the CPU; then items a second of the usual loop (64 at a time as they come, copied and waited for, in fp32
and in bf16; its tokens, normalised pixels and spectrograms are made before the clock starts), of our encoder on
decoded items, which makes its own but for tokens, and of a whole worker from JPEG, OGG or text, each the median of its
rounds. Needs no Ray. One JSON document; `roofline` is arithmetic at the items' own lengths, per second, of what a
product of 8192 x 8192 matrices in bf16 gets on this card.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from batchproj.accelerator import device, is_apart
from batchproj.bench import corpus
from batchproj.collection.unit import Unit
from batchproj.decode.item import PIECE
from batchproj.decode.limits import Limits
from batchproj.decoding import Decoding, Fetched
from batchproj.embedding import UnitWorker
from batchproj.encode import Encoder, parse_config
from batchproj.media import Segment
from batchproj.schema import Modality
from batchproj.space import open_space, resolve
from batchproj.weights import resolve as resolve_weights

ROUNDS = 3
CORES = len(os.sched_getaffinity(0))
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass
class Subject:
    """A model, and what it is given: `unique` files, repeated to `items` of them."""

    name: str
    modality: Modality
    kind: str
    make: Callable[[Path, bool], None]
    file: Callable[[int], bytes]
    unique: int
    items: int
    fields: dict[str, Any] = field(default_factory=dict)


def clip(hidden: int, layers: int, heads: int, patch: int, shared: int) -> Callable[[Path, bool], None]:
    """Vision tower's sizes as in the model card; the text tower is small, for it is not run."""

    def make(folder: Path, tiny: bool) -> None:
        sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
        vision = TINY if tiny else {**sizes, "num_attention_heads": heads}
        config = transformers.CLIPConfig(
            text_config=TINY,
            vision_config={**vision, "patch_size": patch, "image_size": 224, "projection_dim": shared},
            projection_dim=shared,
        )
        save(transformers.CLIPModel(config), folder)
        settings = {"do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True}
        settings |= {"crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255}
        settings |= {"do_normalize": True, "image_mean": MEAN, "image_std": STD, "do_convert_rgb": True}
        settings |= {"image_processor_type": "CLIPImageProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))

    return make


def minilm(folder: Path, tiny: bool) -> None:
    """all-MiniLM-L6-v2's sizes; a vocabulary of the corpus' own words, each a token as in BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = sorted({word.lower() for word in corpus._WORDS})
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "."]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*marks, *words])}, "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names).save_pretrained(
        folder
    )
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    save(transformers.BertModel(transformers.BertConfig(**(TINY if tiny else sizes))), folder)


def whisper(width: int, layers: int, heads: int, mels: int) -> Callable[[Path, bool], None]:
    """The encoder's sizes; of the decoder, which is not run, one layer."""

    def make(folder: Path, tiny: bool) -> None:
        sizes = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads}
        sizes |= {"encoder_ffn_dim": 4 * width, "num_mel_bins": mels}
        small = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
        chosen = {**sizes, **small} if tiny else sizes
        rest = {"decoder_layers": 1, "decoder_attention_heads": chosen["encoder_attention_heads"], "vocab_size": 100}
        rest |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        save(transformers.WhisperModel(transformers.WhisperConfig(**chosen, **rest)), folder)

    return make


def save(model: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)


def photograph(number: int) -> bytes:
    return corpus.photograph([1, number])


def text(words: Callable[[list[int]], str]) -> Callable[[int], bytes]:
    return lambda number: words([1, number]).encode()


def ogg(seconds: Callable[[int], float]) -> Callable[[int], bytes]:
    """Vorbis, mono, 44.1 kHz."""

    def make(number: int) -> bytes:
        samples, rate = soundfile.read(io.BytesIO(corpus.sound([1, number], seconds(number))), dtype="float32")
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", rate, 1, format="OGG", subtype="VORBIS") as out:
            for at in range(0, len(samples), rate):  # libsndfile overflows its stack on long pieces
                out.write(samples[at : at + rate])
        return file.getvalue()

    return make


def short(number: int) -> float:
    return corpus.short_seconds([1, number])


SUBJECTS = {
    each.name: each
    for each in (
        Subject("clip-vit-b32", Modality.IMAGE, "clip", clip(768, 12, 12, 32, 512), photograph, 32, 4_096),
        Subject("clip-vit-l14", Modality.IMAGE, "clip", clip(1024, 24, 16, 14, 768), photograph, 32, 2_048),
        Subject("minilm-short", Modality.TEXT, "text", minilm, text(corpus.sentence), 20_000, 20_000),
        Subject("minilm-long", Modality.TEXT, "text", minilm, text(corpus.paragraph), 4_000, 8_000),
        Subject("whisper-base-short", Modality.AUDIO, "whisper", whisper(512, 6, 8, 80), ogg(short), 256, 4_096),
        Subject("whisper-base-30s", Modality.AUDIO, "whisper", whisper(512, 6, 8, 80), ogg(lambda _: 29.5), 32, 512),
        Subject(
            "whisper-large-30s", Modality.AUDIO, "whisper", whisper(1280, 32, 20, 128), ogg(lambda _: 29.5), 32, 256
        ),
    )
}


class Trial:
    """A subject's model in a folder, its files, and what is made of them."""

    def __init__(self, subject: Subject, folder: Path, tiny: bool) -> None:
        self.subject, self.folder, self.tiny = subject, folder, tiny
        self.items = min(subject.items, 48) if tiny else subject.items
        kept = folder / "files"
        if not kept.exists():
            kept.mkdir(parents=True)
            torch.manual_seed(0)
            subject.make(folder, tiny)
            with ProcessPoolExecutor(CORES) as pool:
                unique = range(min(subject.unique, 16) if tiny else subject.unique)
                for number, data in enumerate(pool.map(_file, [subject.name] * len(unique), unique, chunksize=4)):
                    (kept / f"{number:06}").write_bytes(data)
        self.files = [file.read_bytes() for file in sorted(kept.iterdir())]

    def encoder(self, dtype: str) -> Encoder:
        told = {"kind": self.subject.kind, "model": str(self.folder), "dtype": dtype, **self.subject.fields}
        weights = resolve_weights(str(self.folder), None, None)
        return parse_config(told, "benchmark").build(weights, self.subject.modality, CORES)

    @cached_property
    def segments(self) -> list[Segment]:
        """Decoded, `items` of them."""
        spec, modality = self.encoder("bf16").spec, self.subject.modality
        decoding = Decoding(modality, spec, frozenset({modality}), Limits(), CORES, PIECE)
        found = [segment for each in decoding.ahead(self.fetched(len(self.files)), None) for segment in each.segments]
        assert len(found) == len(self.files)
        return [found[number % len(found)] for number in range(self.items)]

    def fetched(self, count: int) -> list[Fetched]:
        """Items of different names and contents, as far as a worker knows."""
        files = [self.files[number % len(self.files)] for number in range(count)]
        return [Fetched(f"{n:06}", f"{n:06}", None, "v", data, f"{n}", "") for n, data in enumerate(files)]

    def worker(self) -> UnitWorker:
        space: dict[str, Any] = {"name": "gpu", "dim": self.encoder("bf16").encode(self.segments[:1]).shape[1]}
        space[self.subject.modality.value] = {
            "encoder": {"kind": self.subject.kind, "model": str(self.folder), "dtype": "bf16", **self.subject.fields}
        }
        file = self.folder / "space.yaml"
        file.write_text(json.dumps(space))
        resolved = resolve(open_space(str(file)))
        made = UnitWorker(
            resolved.members[self.subject.modality], resolved.dim, frozenset(resolved.members), Limits(), CORES
        )
        made.load()
        return made

    def usual(self, dtype: torch.dtype) -> Callable[[], None]:
        """What documentation shows: 64 at a time as they come (30 s of sound: 16), each step waited for."""
        weights = {"torch_dtype": dtype, "local_files_only": True}
        if self.subject.modality is Modality.IMAGE:
            model = transformers.CLIPVisionModelWithProjection.from_pretrained(self.folder, **weights)
        elif self.subject.modality is Modality.TEXT:
            model = transformers.AutoModel.from_pretrained(self.folder, **weights)
        else:
            model = transformers.WhisperModel.from_pretrained(self.folder, **weights).get_encoder()
        model = model.to(device()).eval()
        at_once = 16 if self.subject.modality is Modality.AUDIO else 64
        batches = [self.segments[at : at + at_once] for at in range(0, min(self.items, 16 * at_once), at_once)]
        inputs = [self.usual_input(batch) for batch in batches]  # of sound its spectrograms as well, padded to 30 s

        def work() -> int:
            for given in inputs:
                with torch.inference_mode():
                    there = {
                        name: value.to(device(), dtype if value.is_floating_point() else None)
                        for name, value in given.items()
                    }
                    output = model(**there)
                    pooled = getattr(output, "image_embeds", None)
                    (output.last_hidden_state.mean(1) if pooled is None else pooled).float().cpu().numpy()
            return sum(map(len, batches))

        return work

    def usual_input(self, batch: list[Segment]) -> dict[str, torch.Tensor]:
        if self.subject.modality is Modality.IMAGE:
            pixels = torch.from_numpy(np.stack([np.asarray(each.data) for each in batch])).permute(0, 3, 1, 2) / 255
            mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
            return {"pixel_values": (pixels - mean) / std}
        if self.subject.modality is Modality.TEXT:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
            return dict(tokenizer([str(each.data) for each in batch], padding=True, return_tensors="pt"))
        mels = json.loads((self.folder / "config.json").read_text())["num_mel_bins"]
        extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
        found = extractor([np.asarray(each.data) for each in batch], sampling_rate=16_000, return_tensors="pt")
        return {"input_features": found.input_features}

    def flops(self) -> float:
        """Of one item on average, at its own length, written out: the counter knows no fused attention."""
        told: dict[str, Any] = {"attn_implementation": "eager"}
        with torch.device("meta"):
            if self.subject.modality is Modality.IMAGE:
                config = transformers.CLIPVisionConfig.from_pretrained(self.folder)
                model = transformers.CLIPVisionModelWithProjection._from_config(config, **told).float().eval()
                return _flops(lambda: model(pixel_values=torch.empty(1, 3, 224, 224)))
            config = transformers.AutoConfig.from_pretrained(self.folder)
            if self.subject.modality is Modality.TEXT:
                text_model = transformers.AutoModel.from_config(config, **told).float().eval()
                words = [len(str(each.data).replace(".", " .").split()) + 2 for each in self.segments[:500]]
                counts = {
                    n: _flops(lambda n=n: text_model(input_ids=torch.zeros(1, n, dtype=torch.int64))) for n in {*words}
                }
                return sum(counts[n] for n in words) / len(words)
            sound_model = transformers.WhisperModel._from_config(config, **told).get_encoder().float().eval()
            whole = _flops(lambda: sound_model(torch.empty(1, config.num_mel_bins, 3_000)))
        seconds = statistics.mean(len(np.asarray(each.data)) for each in self.segments[:500]) / 16_000
        # attention of 30 s of sound is a tenth of the rest, and of 2 s nothing: the rest goes with the length
        return whole * min(1.0, seconds / 30)


def _flops(forward: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        forward()
    return float(counter.get_total_flops())


def _file(name: str, number: int) -> bytes:
    return SUBJECTS[name].file(number)


def rate(work: Callable[[], int], rounds: int) -> list[float]:
    """Items a second, round by round, after one that is not counted."""
    found = []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        items = work()
        if number:
            found.append(items / (time.perf_counter() - begun))
    return found


def product_rate() -> float:
    """FLOP/s of matrices in bf16."""
    edge = 8_192 if is_apart() else 1_024
    left, right = (torch.randn(edge, edge, device=device(), dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    _wait()
    begun = time.perf_counter()
    for _ in range(10):
        left @ right
    _wait()
    return 10 * 2 * edge**3 / (time.perf_counter() - begun)


def _wait() -> None:
    if is_apart():
        torch.cuda.synchronize()


def busy(work: Callable[[], int]) -> dict[str, float]:
    """Of one pass: share of the time in which the card runs kernels, and in which it copies."""
    from torch.profiler import ProfilerActivity, profile

    _wait()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        begun = time.perf_counter()
        work()
        _wait()
        took = time.perf_counter() - begun
    kernels = copies = 0.0
    for event in found.events():
        if event.device_type.name == "CUDA":
            is_copy = event.name.lower().startswith(("memcpy", "memset"))
            copies += event.device_time * is_copy
            kernels += event.device_time * (not is_copy)
    return {"kernels": round(kernels / 1e6 / took, 3), "copies": round(copies / 1e6 / took, 3)}


def reference(name: str, folder: str, tiny: bool, out: str) -> None:
    """Features in fp32 on the CPU of the first items."""
    trial = Trial(SUBJECTS[name], Path(folder), tiny)
    np.save(out, trial.encoder("fp32").encode(trial.segments[: sample(name)]))


def sample(name: str) -> int:
    return 3 if "large" in name else 16


def least_cosine(trial: Trial, encoder: Encoder) -> float:
    out = trial.folder / "reference.npy"
    told = [
        sys.executable,
        __file__,
        "--reference",
        trial.subject.name,
        "--folder",
        str(trial.folder),
        "--out",
        str(out),
    ]
    subprocess.run(
        [*told, *(["--tiny"] if trial.tiny else [])], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    wanted, found = np.load(out), encoder.encode(trial.segments[: sample(trial.subject.name)])
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (wanted, found)]
    return float((unit[0] * unit[1]).sum(1).min())


def measure(trial: Trial, peak: float) -> dict[str, Any]:
    encoder = trial.encoder("bf16")
    told: dict[str, Any] = {"least_cosine": round(least_cosine(trial, encoder), 5), "items": trial.items}

    def ours() -> int:
        return len(encoder.encode(trial.segments))

    ours()  # batches grow
    found = {
        "usual_fp32": rate(trial.usual(torch.float32), ROUNDS),
        "usual_bf16": rate(trial.usual(torch.bfloat16), ROUNDS),
        "encoder": rate(ours, ROUNDS),
    }
    told["busy"] = busy(ours) if is_apart() else None
    worker = trial.worker()
    items = trial.fetched(min(trial.items, 1_024 if trial.subject.modality is Modality.IMAGE else trial.items))
    unit = Unit(name="u", run="1", task="embed", modality=trial.subject.modality, items=len(items), bytes=0)
    model_s: list[float] = []

    def whole() -> int:
        output = worker.embed(unit, items, None, lambda _: None)
        model_s.append(output.model_s)
        return output.vectors.num_rows

    found["files"] = rate(whole, ROUNDS)
    told |= {
        name: {"per_s": round(statistics.median(rates), 1), "range": [round(min(rates), 1), round(max(rates), 1)]}
        for name, rates in found.items()
    }
    per_s = told["encoder"]["per_s"]
    told["gflop"] = round(trial.flops() / 1e9, 2)
    told["roofline"] = round(trial.flops() * per_s / peak, 3)
    told["times_usual_bf16"] = round(per_s / told["usual_bf16"]["per_s"], 2)
    told["times_usual_fp32"] = round(per_s / told["usual_fp32"]["per_s"], 2)
    told["files_to_encoder"] = round(told["files"]["per_s"] / per_s, 3)
    told["model_share_of_files"] = round(statistics.median(model_s[1:]) * told["files"]["per_s"] / len(items), 3)
    if trial.subject.modality is Modality.IMAGE and is_apart():
        told["nvjpeg_per_s"] = round(nvjpeg_rate(trial.files), 1)
    return told


def nvjpeg_rate(files: Sequence[bytes]) -> float:
    """The card's own decoder, all pixels, nothing resized: what it would be worth."""
    from torchvision.io import decode_jpeg

    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files[:64]]

    def work() -> int:
        decode_jpeg(tensors, device="cuda")
        _wait()
        return len(tensors)

    return statistics.median(rate(work, ROUNDS))


def shared(trial: Trial, processes: int) -> float:
    """Items a second of so many workers of one card together, each its own process."""
    told = [sys.executable, __file__, "--share", trial.subject.name, "--folder", str(trial.folder)]
    told += ["--tiny"] if trial.tiny else []
    start = time.time() + (40 if is_apart() else 20)
    running = [
        subprocess.Popen([*told, "--start", str(start)], stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return sum(float(each.communicate()[0].split()[-1]) for each in running)


def share(name: str, folder: str, tiny: bool, start: float) -> None:
    trial = Trial(SUBJECTS[name], Path(folder), tiny)
    encoder = trial.encoder("bf16")
    for _ in range(2):
        encoder.encode(trial.segments)
    assert time.time() < start, "it took too long to begin together with the others"
    time.sleep(start - time.time())
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < 4:
        done += len(encoder.encode(trial.segments))
    print(done / (time.perf_counter() - begun))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS))
    parser.add_argument("--tiny", action="store_true", help="to see that it runs, on a CPU")
    parser.add_argument("--share-by", type=int, default=4, help="processes that share the card; 0: none do")
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--reference", help=argparse.SUPPRESS)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=float, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.reference:
        reference(told.reference, told.folder, told.tiny, told.out)
    elif told.share:
        share(told.share, told.folder, told.tiny, told.start)
    else:
        report_all(told.only, told.tiny, told.share_by, Path(told.out))


def report_all(names: Sequence[str], tiny: bool, share_by: int, out: Path) -> None:
    card = torch.cuda.get_device_name() if is_apart() else "CPU"
    report: dict[str, Any] = {"card": card, "cores": CORES, "torch": torch.__version__, "models": {}}
    report["transformers"], report["bf16_tflops"] = transformers.__version__, round((peak := product_rate()) / 1e12, 1)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            begun = time.perf_counter()
            try:
                trial = Trial(SUBJECTS[name], Path(folder) / name, tiny)
                report["models"][name] = measure(trial, peak)
                if share_by and name == "minilm-short":
                    report["models"][name][f"shared_by_{share_by}_per_s"] = round(shared(trial, share_by), 1)
            except Exception as error:  # the others are worth having
                report["models"][name] = {"failed": f"{type(error).__name__}: {error}"[:600]}
                traceback.print_exc()
            print(name, f"{time.perf_counter() - begun:.0f} s", json.dumps(report["models"][name]), flush=True)
            out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
