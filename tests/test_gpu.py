"""Projectors on a GPU: they train there, go on elsewhere, and give what they give on the CPU. Needs no Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batchproj.fit import Config, Features, TrainingSamples, projector_config
from batchproj.streamed_fit import Batch, Objective, StreamedTraining
from batchproj.token_features import TokenFeatures

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

STEPS = 12


def on_gpu(objective: Objective) -> torch.nn.Module:
    return objective.to("cuda")


def training(kind: str, wrap: bool = True) -> StreamedTraining:
    config = Config(kind=kind, checks=2)
    projector = projector_config(config, 16, 8).build()
    return StreamedTraining(projector, config, STEPS, on_gpu if wrap else lambda objective: objective)


def samples(kind: str, count: int = 64) -> tuple[Features, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    random = np.random.default_rng(0)
    targets = random.standard_normal((count, 8)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    mix = random.standard_normal((8, 16)).astype(np.float32)
    if kind in ("linear", "mlp"):
        return targets @ mix, targets
    lengths = random.integers(1, 9, count)
    rows = [np.repeat(row[None], length, axis=0) for row, length in zip(targets @ mix, lengths.tolist(), strict=True)]
    return TokenFeatures.of(rows), targets


@pytest.mark.parametrize("kind", ["linear", "mlp", "cross_attention", "transformer"])
def test_what_is_trained_on_a_gpu_is_the_same_projector_on_the_cpu(kind: str) -> None:
    features, targets = samples(kind)
    numbers = torch.arange(len(targets))
    batch = Batch(features, targets, numbers, numbers)
    judged = TrainingSamples.of(features, targets, [str(number) for number in numbers.tolist()])
    ran = training(kind)
    losses = [ran.step(batch) for _ in range(STEPS)]
    assert losses[-1] < losses[0]
    there = ran.objective.projector
    assert there.device.type == "cuda"
    vectors = there.project(features)
    assert ran.check(judged).recall > 0
    checkpoint = ran.to_bytes()

    moved = training(kind, wrap=False)
    moved.resume(checkpoint)
    assert moved.objective.projector.device.type == "cpu"
    assert (moved.objective.projector.project(features) * vectors).sum(axis=1).min() > 0.9999

    back = training(kind)
    back.resume(checkpoint)
    assert back.objective.projector.device.type == "cuda"
    assert back.objective.projector.project(features).tobytes() == vectors.tobytes()
    projector, _, _ = ran.best()
    assert projector.device.type == "cpu"
    assert np.isfinite(back.step(batch))  # the queue and the optimiser's moments came along
