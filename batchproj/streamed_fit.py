"""One run of training over samples that stream by, alone or as one of several workers.

B samples of a worker's batch, W workers, A = W * B, Q captions remembered, D encoder dim, K dim of
the space. Captions' vectors never change, so those of earlier batches are as good candidates as
the batch's own, and cost no more than their memory (a queue as in He et al. 2020 (MoCo),
arXiv:1911.05722, without what goes stale there). Gathered over workers as in CLIP's own training.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed import nn as differentiable

from batchproj import losses
from batchproj.fit import Array, Check, Config, Features, TrainingSamples, mean_recall
from batchproj.objective import adamw, dropped_vectors, schedule
from batchproj.projector import Projector


@dataclass(frozen=True)
class Batch:
    """`caption` (B,) is equal for equal captions, `group` (B,) for what is right for each other."""

    features: Features
    targets: Array
    captions: Tensor
    groups: Tensor


class Objective(torch.nn.Module):
    """Projector and loss as one module, so that gradients of both are averaged over workers."""

    def __init__(self, projector: Projector, config: Config) -> None:
        super().__init__()
        self.projector = projector
        self.contrast = losses.build(config.loss, config.temperature)
        self._hidden = config.feature_dropout
        self._remembered = config.candidates
        self.queue: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, batch: Batch) -> Tensor:
        """The loss of all workers' batches together, the same on each."""
        device = self.projector.device
        vectors_AK = _gathered_with_gradient(dropped_vectors(self.projector, batch.features, self._hidden))
        own = tuple(
            _gathered(each.to(device)) for each in (torch.from_numpy(batch.targets), batch.captions, batch.groups)
        )
        before = self.queue or tuple(each[:0] for each in own)
        targets_CK, captions_C, groups_C = (torch.cat(each) for each in zip(own, before, strict=True))
        captions_A, groups_A = own[1], own[2]
        right_AC = (groups_A[:, None] == groups_C) | (captions_A[:, None] == captions_C)
        self.queue = targets_CK[: self._remembered], captions_C[: self._remembered], groups_C[: self._remembered]
        loss: Tensor = self.contrast(vectors_AK, targets_CK, torch.arange(len(vectors_AK), device=device), right_AC)
        return loss


def _gathered_with_gradient(rows: Tensor) -> Tensor:
    if _workers() == 1:
        return rows
    return torch.cat(differentiable.functional.all_gather(rows))  # type: ignore[no-untyped-call]


def _gathered(rows: Tensor) -> Tensor:
    if _workers() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(_workers())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _workers() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


@dataclass
class Position:
    """Where a run is: what a checkpoint has to say beside the weights."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # of this epoch
    history: list[Check] = field(default_factory=list)


class StreamedTraining:
    """`steps` steps from a projector as it is; keeps the weights that found most on the validation slice.

    `wrap` is called once with the objective, to average its gradients over workers.
    """

    def __init__(
        self,
        projector: Projector,
        config: Config,
        steps: int,
        wrap: Callable[[Objective], torch.nn.Module] = lambda objective: objective,
    ) -> None:
        self.objective = Objective(projector, config)
        self.position = Position()
        self.steps = steps
        self._every = math.ceil(steps / config.checks)
        self._model = wrap(self.objective)
        self._optimizer = adamw(
            projector, self.objective.contrast.parameters(), config.learning_rate, config.weight_decay
        )
        self._schedule = schedule(self._optimizer, config.warm_up, steps)
        self._losses: list[float] = []
        self._best: dict[str, Tensor] = {}

    @property
    def done(self) -> bool:
        return self.position.step >= self.steps

    @property
    def is_check(self) -> bool:
        """Whether it is time to look at the validation slice."""
        return self.done or self.position.step % self._every == 0

    def step(self, batch: Batch) -> float:
        self._model.train()
        loss = self._model(batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        self.position.step += 1
        self.position.batch += 1
        self._losses.append(loss.item())
        return self._losses[-1]

    def next_epoch(self) -> None:
        self.position.epoch += 1
        self.position.batch = 0

    def check(self, judged: TrainingSamples) -> Check:
        """Recall on the validation slice as it is now; called by one worker only."""
        found = Check(
            self.position.step,
            sum(self._losses) / max(1, len(self._losses)),
            mean_recall(self.objective.projector, judged),
        )
        self._losses.clear()
        self.position.history.append(found)
        if found.recall >= max(check.recall for check in self.position.history):
            self._best = {name: each.detach().clone() for name, each in self.objective.state_dict().items()}
        return found

    def best(self) -> tuple[Projector, int, float]:
        """The projector that found most, after how many steps that was, and its temperature."""
        self.objective.load_state_dict(self._best)
        best = max(check.recall for check in self.position.history)
        step = max(check.step for check in self.position.history if check.recall == best)
        return self.objective.projector.cpu().eval(), step, self.objective.contrast.temperature

    def to_bytes(self) -> bytes:
        """All that a run needs to go on exactly here."""
        sink = io.BytesIO()
        torch.save(
            {
                "objective": self.objective.state_dict(),
                "queue": self.objective.queue,
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "best": self._best,
                "random": torch.get_rng_state(),
                "position": asdict(self.position),
            },
            sink,
        )
        return sink.getvalue()

    def resume(self, data: bytes) -> None:
        """Go on where `to_bytes` was called; weights alone are read, no code."""
        # from the CPU each part goes where it belongs: the optimiser counts its steps there even for a GPU's weights
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        self.objective.load_state_dict(state["objective"])
        device = self.objective.projector.device
        self.objective.queue = None if state["queue"] is None else tuple(each.to(device) for each in state["queue"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._best = state["best"]
        torch.set_rng_state(state["random"])
        kept = state["position"]
        self.position = Position(**{**kept, "history": [Check(**each) for each in kept["history"]]})
