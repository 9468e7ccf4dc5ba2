"""Encoders on a GPU: what they give on the CPU, however often; batches that find their size; a worker's windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_pictures import save_clip, save_transformer
from tiny_sound import save_ast, save_wave, save_whisper
from tiny_text import save_bert, save_clap, save_qwen3, save_t5, with_sentence_files

from batchproj.accelerator import Coming, Replayed, filled, stacked
from batchproj.encode import Encoder, parse_config
from batchproj.media import Segment
from batchproj.queued_batches import QueuedBatches
from batchproj.schema import Modality
from batchproj.weights import resolve

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:At least one mel filter"),
]

Array = npt.NDArray[np.float32]


def texts() -> list[Any]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{n}" for n in rng.integers(0, 14, length)) for length in rng.integers(0, 60, 150)]


def pictures() -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (90, 32, 32, 3), dtype=np.uint8))


def sounds() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-0.3, 0.3, int(16_000 * seconds)).astype(np.float32) for seconds in rng.uniform(0.2, 1.2, 40)]


def save_vit(folder: Path) -> Path:
    save_transformer(folder, "vit")
    return folder


def save_prompted(folder: Path) -> Path:
    copy = folder.parent / f"{folder.name}-copy"
    save_bert(folder)
    return with_sentence_files(folder, copy, "mean_tokens")


@dataclass
class Family:
    save: Any
    modality: Modality
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def segments(self) -> list[Any]:
        return {Modality.TEXT: texts, Modality.IMAGE: pictures, Modality.AUDIO: sounds}[self.modality]()


FAMILIES = {
    "clip-image": Family(save_clip, Modality.IMAGE, {"kind": "clip"}),
    "clip-text": Family(save_clip, Modality.TEXT, {"kind": "clip"}),
    "vit": Family(save_vit, Modality.IMAGE, {"kind": "vision"}),
    "bert-mean": Family(save_bert, Modality.TEXT, {"kind": "text"}),
    "bert-cls": Family(save_bert, Modality.TEXT, {"kind": "text", "pooling": "cls"}),
    "bert-last": Family(save_bert, Modality.TEXT, {"kind": "text", "pooling": "last", "normalize": True}),
    "bert-prompt": Family(
        save_prompted, Modality.TEXT, {"kind": "text", "prompts": {"document": "w3 w4: "}, "max_tokens": 50}
    ),
    "qwen3": Family(save_qwen3, Modality.TEXT, {"kind": "text"}),
    "t5": Family(save_t5, Modality.TEXT, {"kind": "text"}),
    "clap-sound": Family(save_clap, Modality.AUDIO, {"kind": "clap"}),
    "clap-text": Family(save_clap, Modality.TEXT, {"kind": "clap"}),
    "whisper": Family(save_whisper, Modality.AUDIO, {"kind": "whisper", "pooling": "mean_std", "slices": 3}),
    "whisper-padded": Family(save_whisper, Modality.AUDIO, {"kind": "whisper", "window": "padded"}),
    "ast": Family(save_ast, Modality.AUDIO, {"kind": "audio"}),
    "wav2vec2": Family(lambda folder: save_wave(folder, "wav2vec2-layer"), Modality.AUDIO, {"kind": "audio"}),
}


def build(family: Family, folder: Path, dtype: str) -> tuple[dict[str, Any], Encoder]:
    told = {**family.fields, "model": str(folder), "dtype": dtype}
    return told, parse_config(told, "test").build(resolve(str(folder), None, None), family.modality, 1)


def cosines(left: Array, right: Array) -> Array:
    return (left * right).sum(-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_features_are_those_of_the_cpu(name: str, dtype: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = family.save(tmp_path / "model")
    told, encoder = build(family, folder, dtype)
    given = [Segment(each) for each in family.segments]
    np.savez(tmp_path / "segments.npz", **{f"{number:04}": np.asarray(each.data) for number, each in enumerate(given)})
    program = [sys.executable, str(Path(__file__).parent / "gpu_reference.py"), json.dumps({**told, "dtype": "fp32"})]
    arguments = [family.modality.value, str(tmp_path / "segments.npz"), str(tmp_path / "wanted.npz")]
    subprocess.run([*program, *arguments], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    least = 0.98 if dtype == "bf16" else 0.999  # convolutions of 32 bits are done in TF32
    with np.load(tmp_path / "wanted.npz") as wanted:
        for _ in range(3):  # step by step, recorded, replayed
            assert cosines(encoder.encode(given), wanted["pooled"]).min() > least
        assert cosines(encoder.encode(given[:1]), wanted["pooled"][:1]).min() > least
        for number, found in enumerate(encoder.encode_tokens(given)):
            assert found.shape == wanted[f"tokens{number}"].shape
            assert np.median(cosines(found, wanted[f"tokens{number}"])) > least


def test_a_step_that_is_replayed_takes_its_new_inputs() -> None:
    calls = []

    def doubled(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append(len(left))
        return left * 2 + right

    function = Replayed(doubled)
    for number in range(5):
        left = torch.full((4, 3), float(number), device="cuda")
        found = function(left, torch.ones(4, 3, device="cuda"))
        assert found.cpu().tolist() == [[2.0 * number + 1] * 3] * 4
    assert calls == [4, 4, 4]  # as it is, to see that it asks nothing of the host, and to be recorded
    assert function(torch.zeros(2, 3, device="cuda"), torch.ones(2, 3, device="cuda")).shape == (2, 3)


def test_what_cannot_be_recorded_runs_step_by_step() -> None:
    function = Replayed(lambda values: values * float(values.max()))  # asks the host
    for number in range(1, 5):
        values = torch.full((3,), float(number), device="cuda")
        assert function(values).cpu().tolist() == [float(number**2)] * 3


def assert_is_recorded(shape: int) -> None:
    calls = []

    def doubled(values: torch.Tensor) -> torch.Tensor:
        calls.append(len(values))
        return values * 2

    function = Replayed(doubled)
    for number in range(5):
        assert function(torch.full((shape,), float(number), device="cuda")).cpu().tolist() == [2.0 * number] * shape
    assert len(calls) == 3


def test_when_all_that_was_recorded_is_gone_others_are_recorded() -> None:
    for _ in range(2):
        assert_is_recorded(6)


def test_after_a_recording_that_fails_others_are_recorded_and_random_numbers_are_drawn() -> None:
    def waits(values: torch.Tensor) -> torch.Tensor:
        torch.cuda.synchronize()  # refused while torch records, and not before
        return values * 2

    failing = Replayed(waits)
    for number in range(1, 4):
        assert failing(torch.full((3,), float(number), device="cuda")).cpu().tolist() == [2.0 * number] * 3
    assert torch.rand(4, device="cuda").unique().numel() > 1
    assert_is_recorded(5)
    before = torch.cuda.memory_reserved()
    for _ in range(8):  # memory that two streams use is lent again
        stacked([np.zeros(2**26, np.uint8)]).max().item()
    assert torch.cuda.memory_reserved() - before < 4 * 2**26


def test_arrays_are_filled_up_with_zeros_on_the_card() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(length).astype(np.float32) for length in (5, 1, 0, 7)]
    for _ in range(2):  # memory that is lent again holds what was in it
        found = filled(arrays, 7).cpu().numpy()
        np.testing.assert_array_equal(found, np.stack([np.pad(each, (0, 7 - len(each))) for each in arrays]))
        filled([np.ones(7, np.float32)] * 4, 7)


def test_copies_arrive_whole_while_others_are_on_their_way() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (64, 224, 224, 3), dtype=np.uint8) for _ in range(12)]
    coming = [Coming(stacked(list(array)).float().sum((1, 2, 3))) for array in arrays]
    for each, array in zip(coming, arrays, strict=True):
        np.testing.assert_allclose(each.arrived(), array.sum((1, 2, 3), dtype=np.float64), rtol=1e-4)


def test_batches_without_room_are_halved_on_the_card_itself() -> None:
    free, _ = torch.cuda.mem_get_info()
    sizes: list[int] = []

    def forward(rows: Sequence[Array]) -> Coming:
        sizes.append(len(rows))
        room = torch.empty(len(rows), free // 5, dtype=torch.uint8, device="cuda")  # four have room, eight have none
        room[:, 0] = 1
        return Coming(stacked(rows) * room[:, :1])

    batches = QueuedBatches(forward)
    rows = [np.full(3, number, np.float32) for number in range(8)]
    found = batches.run(rows, key=len, full=lambda _: 8)
    torch.cuda.empty_cache()
    assert np.stack(found).tolist() == np.stack(rows).tolist()
    assert sizes[0] == 8
    assert set(sizes[1:]) <= {4, 2}
