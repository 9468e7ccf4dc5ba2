"""Training by workers of Ray on shards: the same as ever with one, as good with two, and on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import wait_for
from test_training_set import Corpus

from batchproj.card import read_card
from batchproj.collection.ledger import Report
from batchproj.errors import SpaceError, UsageError
from batchproj.fit import Check, Config
from batchproj.many_pairs import Fitted, fit_set
from batchproj.objectstore import Folder
from batchproj.space import Split
from batchproj.train import TrainOptions, train
from batchproj.training_set import TrainingSet

SMALL = Config(
    kind="linear", epochs=4, batch_rows=16, candidates=128, feature_dropout=0.1, learning_rate=1e-2, checks=6
)

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("ray_here")]


def made(folder: Path, pairs: int = 600) -> TrainingSet:
    found = Corpus(folder, pairs).build(folder / "a")
    assert found is not None
    return found


def shards(folder: Path) -> Folder:
    return Folder(str(folder / "a/shards"))


def ignore(*_: object) -> None:
    """For training that nobody watches."""


def recall(fitted: Fitted) -> float:
    held_out = fitted.unseen.held_out()
    return held_out.recalls(held_out.answers(fitted.fit.projector.project(fitted.unseen.features)))[-1].value


def test_one_worker_gives_the_same_weights_again_and_two_are_as_good(tmp_path: Path) -> None:
    pairs = made(tmp_path)
    seen: list[tuple[int, int, Check | None]] = []
    one = fit_set(pairs, SMALL, shards(tmp_path), 1, lambda *told: seen.append(told))
    assert recall(one) > 0.8  # of ranks among some 120
    assert [check.step for check in one.fit.history][-1] == seen[-1][1]
    assert {total for _, total, _ in seen} == {one.fit.history[-1].step}
    shards(tmp_path).remove([name for name, _ in shards(tmp_path).files() if name.startswith("run-")])
    again = fit_set(pairs, SMALL, shards(tmp_path), 1, ignore)
    assert again.fit.projector.to_bytes() == one.fit.projector.to_bytes()
    two = fit_set(pairs, SMALL, shards(tmp_path), 2, ignore)
    held_out = two.unseen.held_out()
    gain = held_out.gain(
        held_out.answers(two.fit.projector.project(two.unseen.features)),
        held_out.answers(one.fit.projector.project(one.unseen.features)),
    )
    assert gain.low <= 0 <= gain.high or abs(gain.value) < 0.02


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    """With one worker: the queue, the optimiser and what is drawn at random are in the checkpoint."""
    longer = SMALL.model_copy(update={"epochs": 8, "checks": 12})
    pairs = made(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "from pathlib import Path\n"
        "from test_ray_training import Config, fit_set, ignore, made, shards\n"
        "from batchproj.pipeline import ray_session\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"config = Config.model_validate_json({longer.model_dump_json()!r})\n"
        "with ray_session(False):\n"
        "    fit_set(made(folder), config, shards(folder), 1, ignore)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: any((tmp_path / "a/shards").glob("run-*/checkpoint*")) or process.poll() is not None, 300)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    started: list[int] = []
    resumed = fit_set(pairs, longer, shards(tmp_path), 1, lambda step, *_: started.append(step) if step else None)
    first = resumed.fit.history[0].step
    assert started[0] > first  # not from the beginning
    shards(tmp_path).remove([name for name, _ in shards(tmp_path).files() if name.startswith("run-")])
    undisturbed = fit_set(pairs, longer, shards(tmp_path), 1, ignore)
    assert resumed.fit.history == undisturbed.fit.history
    assert resumed.fit.projector.to_bytes() == undisturbed.fit.projector.to_bytes()


def test_the_command_streams_and_leaves_nothing_behind(embedded: tuple[Path, Report], tmp_path: Path) -> None:
    out = tmp_path / "space"
    (out / "training").mkdir(parents=True)
    (out / "training/image-000007.parquet").write_bytes(b"of a run that was killed")
    options = TrainOptions("linear", split=Split(test_fraction=0.3), fit=SMALL, workers=1)
    with pytest.raises(SpaceError, match="no projector kind 'linaer'"):
        train(str(embedded[0]), str(out), replace(options, projector="linaer"), ignore, ignore)
    with pytest.raises(UsageError, match="takes tokens and these features are pooled"):
        train(str(embedded[0]), str(out), replace(options, projector="transformer"), ignore, ignore)
    assert not (out / "training").exists()
    made = train(str(embedded[0]), str(out), options, ignore, ignore)
    in_memory = train(str(embedded[0]), str(tmp_path / "memory"), replace(options, workers=None), ignore, ignore)
    for name in ("pairs_test", "chance_r@10"):
        assert made["modality"]["image"][name] == in_memory["modality"]["image"][name]
    card = read_card(str(out))["modality"]["image"]
    assert made["modality"]["image"]["pairs_train"] == card["pairs_train"]
    assert card["pairs_validation"] > 0  # in memory a second run trains on these as well
    assert card["pairs_train"] + card["pairs_validation"] == in_memory["modality"]["image"]["pairs_train"]
    assert card["groups_judged"] == card["pairs_test"] > 0
    report = (out / "README.md").read_text()
    assert f"chosen among by {card['pairs_validation']} others; {card['pairs_test']} held out, and judged by" in report
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "memory").iterdir()}


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few to divide"):
        fit_set(made(tmp_path, 3), SMALL, shards(tmp_path), 1, ignore)
