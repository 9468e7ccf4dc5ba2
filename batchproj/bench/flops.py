"""Arithmetic that a workload needs: `python -m batchproj.bench.flops JOB.json` prints FLOPs of all its items.

Counted by torch over the models without their weights, at each item's own length: padding is no work that was
asked for. Decoding, tokenizing and spectrograms are not counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from batchproj.bench import models
from batchproj.bench.contender import Job
from batchproj.schema import Modality


def count(job: Job) -> int:
    """FLOPs of one pass over the workload."""
    return {Modality.TEXT: _texts, Modality.IMAGE: _images, Modality.AUDIO: _sounds}[job.modality](job)


def _of(forward: Callable[[], Any]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.inference_mode():
        forward()
    return int(counter.get_total_flops())


def _texts(job: Job) -> int:
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from batchproj.bench.reading import names, read_many

    folder = models.model_folder(Modality.TEXT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [data.decode() for data in read_many(job.source, names(job.source))]
    rows = tokenizer(texts, truncation=True, max_length=models.MAX_TOKENS)["input_ids"]
    with torch.device("meta"):
        # written out, since the counter knows matrix products and not every fused attention
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    lengths = Counter(len(row) for row in rows)
    return sum(
        times * _of(lambda length=length: model(input_ids=torch.zeros(1, length, dtype=torch.int64)))  # type: ignore[misc]
        for length, times in lengths.items()
    )


def _images(job: Job) -> int:
    import torch

    network = models.image_network().to("meta")
    size = network.pretrained_cfg["input_size"]
    return len(job.segments) * _of(lambda: network(torch.empty(1, *size)))


def _sounds(job: Job) -> int:
    """At each clip's own length, up to the next half second, whoever pads it to 30 s."""
    lengths: Counter[int] = Counter()
    for seconds in pq.read_table(job.manifest)["seconds"].to_pylist():
        whole, rest = divmod(seconds, 30)
        lengths[3_000] += int(whole)
        if rest:
            lengths[-int(-rest * 2 // 1) * 50] += 1
    return sum(times * _whisper(length) for length, times in lengths.items())


def _whisper(mel_frames: int) -> int:
    """FLOPs of Whisper tiny's encoder: its weights come for CTranslate2, its sizes are those of the paper."""
    import torch
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1_536, decoder_layers=1,
        num_mel_bins=80, max_source_positions=mel_frames // 2, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        encoder = WhisperModel(config).get_encoder().eval()
    return _of(lambda: encoder(torch.empty(1, 80, mel_frames)))


def main() -> None:
    print(count(Job.model_validate_json(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
