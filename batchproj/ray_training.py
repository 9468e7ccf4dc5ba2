"""Training by Ray Train: 1 to N workers, samples streamed to them by Ray Data; the one other module that knows Ray.

shards (Parquet) -> Ray Data, in order -> a share for each worker, shuffled within a buffer -> steps
worker 0 looks at the validation slice, and leaves a checkpoint; a killed run goes on from there
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batchproj import project
from batchproj.errors import BatchprojError
from batchproj.fit import Check, Config, TrainingSamples
from batchproj.news import polling
from batchproj.objective import no_denormals
from batchproj.objectstore import Folder
from batchproj.pipeline import asking, failure, node_cpus, reserved_cpus
from batchproj.projector import Projector
from batchproj.recipe import Recipe, Tasks
from batchproj.streamed_fit import Batch, Objective, StreamedTraining
from batchproj.training_set import from_bytes, tokens_from_bytes, unit

OnCheck = Callable[[int, Check | None], None]

READ_AHEAD = 512 * 2**20
"""Bytes of shards in Ray's object store; without a limit it would take all that is left of it."""

READS = 2
"""Shards read at once for each worker: every read is a process of its own, with all that it imports."""

CHECKPOINT = "training.pt"


@dataclass(frozen=True)
class Run:
    """What every worker is told. `start` is the projector to begin with, as `to_bytes` gives it."""

    start: bytes
    judged: TrainingSamples
    config: Config
    steps: int
    batch_rows: int  # of one worker
    is_tokens: bool
    in_dim: int
    pooled: bool
    threads: int
    shuffled_rows: int  # that a worker draws from
    data: str  # digest of the samples


def train(
    run: Run, folder: Folder, shards: list[str], workers: int, on_check: OnCheck
) -> tuple[Projector, list[Check], int, float]:
    """The projector that found most on the validation slice, the checks, its steps and temperature.

    Each worker has a GPU where there are enough for all, else none has. `on_check(step, check)` tells how it gets on.
    Needs a `ray_session`. Checkpoints lie beside the shards, in `folder`, which every node has to reach; an equal run
    that was killed is gone on with. Raises BatchprojError if training fails.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    filesystem = folder.arrow()
    on_gpus = ray.cluster_resources().get("GPU", 0) >= workers
    cpus = min(1.0, reserved_cpus(node_cpus(with_gpu=on_gpus), workers, Recipe().cpu_headroom))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    desk = ray.remote(num_cpus=0, max_restarts=-1)(_Desk).remote()
    options = ray.data.ExecutionOptions(
        preserve_order=True, resource_limits=ray.data.ExecutionResources(object_store_memory=READ_AHEAD)
    )
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": run, "desk": desk},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=on_gpus,
            resources_per_worker={"CPU": cpus},
        ),
        datasets={"train": _samples(folder, shards, desk, READS * workers)},
        dataset_config=ray.train.DataConfig(execution_options=options),
        run_config=ray.train.RunConfig(
            name=_name(run, shards, workers),
            storage_path=folder.path("").rstrip("/"),
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    try:
        with _own_interrupts(), polling(asking(desk.look), lambda told: on_check(*told)):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        said = str(error).strip().splitlines()[-1]
        raise failure(desk) or BatchprojError(f"training failed: {said}; run the same command again") from error
    finally:
        ray.kill(desk)
    return _finished(result.checkpoint, run)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train puts a handler of its own in the place of ours for SIGINT, leaves it there, and exits with 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, ours)
        signal.raise_signal(signal.SIGINT)
        raise
    finally:
        signal.signal(signal.SIGINT, ours)


def _samples(folder: Folder, shards: list[str], desk: Any, reads: int) -> Any:
    """All shards in their order, a block each; read as everything of ours is, with patience and few CPUs."""
    import ray.data

    names = ray.data.from_items([{"name": name} for name in shards], override_num_blocks=len(shards))
    return names.map_batches(
        _Shard(folder, desk),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=Tasks().cpus,
        compute=ray.data.TaskPoolStrategy(size=reads),
    )


class _Shard:
    """Task: the samples of one shard."""

    def __init__(self, folder: Folder, desk: Any) -> None:
        self._folder, self._desk = folder, desk

    def __call__(self, batch: pa.Table) -> pa.Table:
        try:
            return pq.read_table(pa.BufferReader(self._folder.read(batch["name"][0].as_py())))
        except BatchprojError as error:
            self._desk.fail.remote(error)  # on its way through Ray it would lose its type
            raise


def _finished(checkpoint: Any, run: Run) -> tuple[Projector, list[Check], int, float]:
    with checkpoint.as_directory() as directory, torch.random.fork_rng(devices=[]):
        training = _training(run)
        training.resume((Path(directory) / CHECKPOINT).read_bytes())
    projector, step, temperature = training.best()
    return projector, training.position.history, step, temperature


def _name(run: Run, shards: list[str], workers: int) -> str:
    """Runs of one name are one run: whatever decides the outcome is in it."""
    judged = hashlib.sha256(run.judged.targets_CK.numpy().tobytes()).hexdigest()
    start = hashlib.sha256(run.start).hexdigest()
    told = [run.config.model_dump(), run.steps, run.batch_rows, start, judged, run.data, shards, workers]
    return f"run-{hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]}"


def _training(run: Run, wrap: Callable[[Objective], torch.nn.Module] = lambda objective: objective) -> StreamedTraining:
    return StreamedTraining(project.loads(run.start), run.config, run.steps, wrap)


def _work(told: dict[str, Any]) -> None:
    """What one worker does."""
    import ray.train
    import ray.train.torch

    run: Run = told["run"]
    context = ray.train.get_context()
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.config.seed + context.get_world_rank())
    training = _training(run, ray.train.torch.prepare_model)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            training.resume((Path(directory) / CHECKPOINT).read_bytes())
        if (rank := context.get_world_rank()) > 0:  # what is random there is that of the first
            torch.manual_seed(run.config.seed + rank + training.position.step)
    with no_denormals():
        while not training.done:
            for batch in _batches(run, training.position.epoch, training.position.batch):
                training.step(batch)
                _tell(training, run, told["desk"], is_first=context.get_world_rank() == 0)
                if training.done:
                    break
            else:
                training.next_epoch()


def _tell(training: StreamedTraining, run: Run, desk: Any, is_first: bool) -> None:
    import ray.train

    step = training.position.step
    if not training.is_check:
        if is_first:
            desk.put.remote(step, None)
        return
    if not is_first:
        ray.train.report({"step": step})
        return
    check = training.check(run.judged)
    desk.put.remote(step, check)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / CHECKPOINT).write_bytes(training.to_bytes())
        ray.train.report(
            {"step": step, "loss": check.loss, "recall": check.recall},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
        )


def _batches(run: Run, epoch: int, done: int) -> Iterator[Batch]:
    """A worker's batches of one pass, without those that a run it resumes has had."""
    import ray.train

    tables = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=run.batch_rows,
        batch_format="pyarrow",
        drop_last=True,
        local_shuffle_buffer_size=run.shuffled_rows,
        local_shuffle_seed=run.config.seed + epoch,
    )
    for number, table in enumerate(tables):
        if number >= done:
            yield _batch(table, run)


def _batch(table: pa.Table, run: Run) -> Batch:
    rows = table["feature"].to_pylist()
    features: Any
    if run.is_tokens:
        features = tokens_from_bytes(rows, run.in_dim)
        if run.pooled:
            features = features.mean_std()
    else:
        features = from_bytes(rows, len(rows))
    return Batch(
        features,
        unit(from_bytes(table["target"].to_pylist(), len(rows))),
        torch.from_numpy(table["caption"].to_numpy().copy()),
        torch.from_numpy(table["grp"].to_numpy().copy()),
    )


class _Desk:
    """Where worker 0 says how it gets on; an actor."""

    def __init__(self) -> None:
        self._step = 0
        self._check: Check | None = None
        self._failure: BatchprojError | None = None

    def fail(self, error: BatchprojError) -> None:
        self._failure = self._failure or error

    def failure(self) -> BatchprojError | None:
        return self._failure

    def put(self, step: int, check: Check | None) -> None:
        self._step, self._check = step, check or self._check

    def look(self) -> tuple[int, Check | None]:
        return self._step, self._check
