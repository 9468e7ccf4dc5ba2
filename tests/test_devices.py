"""What would be wrong on a GPU, seen without one: nothing of a step stays behind on the CPU. `test_gpu` needs one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from batchproj import torch_runtime
from batchproj.fit import Config, Features, projector_config
from batchproj.media import Segment
from batchproj.schema import Modality
from batchproj.space import open_space, resolve
from batchproj.streamed_fit import Batch, Objective, StreamedTraining
from batchproj.token_features import AskedFeatures, TokenFeatures

ROWS = 12
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {},
    "cross_attention": {},
    "transformer": {},
    "asked": {"query_dim": 6},
}


def features(kind: str) -> Features:
    random = np.random.default_rng(0)

    def tokens(dim: int) -> TokenFeatures:
        return TokenFeatures.of([random.standard_normal((1 + row % 3, dim)).astype(np.float32) for row in range(ROWS)])

    if kind in ("linear", "mlp"):
        return random.standard_normal((ROWS, 16)).astype(np.float32)
    return AskedFeatures.by(tokens(6), tokens(16)) if kind == "asked" else tokens(16)


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_done_where_the_projector_is(kind: str, loss: str) -> None:
    """Tensors of the meta device meet no others: what is left on the CPU is an error there, as on a GPU."""
    name = "cross_attention" if kind == "asked" else kind
    config = Config.model_validate({"kind": name, "loss": loss, "options": KINDS[kind], "candidates": 2 * ROWS})
    objective = Objective(projector_config(config, 16, 8).build(), config).to("meta")
    numbers = torch.arange(ROWS)
    batch = Batch(features(kind), np.eye(ROWS, 8, dtype=np.float32), numbers, numbers)
    for _ in range(2):  # the second one meets the captions of the first
        objective(batch).backward()
    assert {each.device.type for each in objective.queue or ()} == {"meta"}
    assert {each.grad.device.type for each in objective.parameters() if each.grad is not None} == {"meta"}


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_checkpoint_takes_the_optimisers_count_to_the_cpu_and_the_queue_to_the_projector() -> None:
    config = Config(kind="linear", checks=2, feature_dropout=0)
    training = StreamedTraining(projector_config(config, 16, 8).build(), config, 4)
    numbers = torch.arange(ROWS)
    batch = Batch(features("linear"), np.eye(ROWS, 8, dtype=np.float32), numbers, numbers)
    training.step(batch)
    again = StreamedTraining(projector_config(config, 16, 8).build(), config, 4)
    again.resume(training.to_bytes())
    assert again.step(batch) == training.step(batch)
    elsewhere = StreamedTraining(projector_config(config, 16, 8).build(), config, 4, lambda each: each.to("meta"))
    elsewhere.resume(training.to_bytes())
    assert {each.device.type for each in elsewhere.objective.queue or ()} == {"meta"}
    steps = [state["step"].device.type for state in elsewhere._optimizer.state.values()]
    assert set(steps) == {"cpu"}


def test_whisper_of_ctranslate2_runs_on_cpus_where_its_cuda_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Segment(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
    member = resolve(open_space("builtin")).members[Modality.AUDIO]
    expected = member.load(threads=1).encode([sound])
    monkeypatch.setattr(torch_runtime, "device", lambda: torch.device("cuda"))
    found = member.load(threads=1).encode([sound])
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(expected, np.float32), atol=2e-2)
