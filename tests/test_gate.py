"""A space that finds worse than the live one is refused, from cached features alone; luck refuses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import write_picture, write_words
from in_process import OPTIONS, resolved, without_ray

from batchproj.collection.ledger import Report
from batchproj.embed import Watch, embed
from batchproj.errors import UsageError
from batchproj.gate import refuse_if_worse
from batchproj.index import live_snapshot
from batchproj.objectstore import Folder
from batchproj.pairs import paired_rows, paired_samples
from batchproj.project.linear import Config
from batchproj.projector import Projector
from batchproj.ridge import PENALTIES, Moments, Ridge
from batchproj.schema import Modality
from batchproj.search import Collection

PAIRS = 60
FORCED = replace(OPTIONS, force=True)


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with without_ray():
        yield


def quiet(_: str) -> None:
    """Nobody watches."""


def run(home: Path, space: Path, options: object = OPTIONS, heard: list[str] | None = None) -> Report:
    watch = Watch(quiet if heard is None else heard.append)
    return embed(str((home / "corpus").readlink()), str(home / "c"), resolved(space), options, watch)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path) -> Path:
    """Sixty pairs embedded without a projector: what one finds of the other is luck."""
    made = tmp_path_factory.mktemp("gate")
    for number in range(PAIRS):
        write_picture(made / "corpus" / f"{number}.png", number)
        write_words(made / "corpus" / f"{number}.txt", number)
    with without_ray():
        embed(str(made / "corpus"), str(made / "c"), resolved(tiny_space), OPTIONS, Watch())
    return made


@pytest.fixture
def home(first_run: Path, tmp_path: Path) -> Path:
    """The corpus, to be left as it is, and a collection of it to change as one likes."""
    (tmp_path / "home").mkdir()
    shutil.copytree(first_run / "c", tmp_path / "home" / "c")
    (tmp_path / "home" / "corpus").symlink_to(first_run / "corpus")
    return tmp_path / "home"


def space_with(folder: Path, tiny_space: Path, projector: Projector) -> Path:
    """The tiny space with a projector for images."""
    folder.mkdir()
    document = yaml.safe_load(tiny_space.read_text())
    document["image"]["projector"] = {"kind": "linear", "weights": "image.safetensors"}
    (folder / "image.safetensors").write_bytes(projector.to_bytes())
    (folder / "space.yaml").write_text(yaml.safe_dump({**document, "name": folder.name}))
    return folder


def by_heart(home: Path) -> Projector:
    """As good on these pairs as a matrix can be: it has seen all of them."""
    collection = Collection(str(home / "c"))
    samples = paired_samples(collection, paired_rows(collection), Modality.IMAGE)
    assert samples is not None
    # the least penalty: one chosen on six pairs held back is luck, and has been the worst of all
    features, targets = (torch.from_numpy(np.asarray(side, np.float32)) for side in (samples.features, samples.targets))
    return Ridge(Moments.of(features, targets)).solve(min(PENALTIES))


def at_random(seed: int = 0) -> Projector:
    torch.manual_seed(seed)
    return Config(in_dim=24, out_dim=24).build()


def test_worse_is_refused_with_both_figures_and_forced(home: Path, tmp_path: Path, tiny_space: Path) -> None:
    good = space_with(tmp_path / "good", tiny_space, by_heart(home))
    bad = space_with(tmp_path / "bad", tiny_space, at_random())
    assert run(home, good).reprojected == PAIRS  # better than the live one
    before = sorted(path for path in (home / "c").rglob("*"))
    with pytest.raises(
        UsageError, match=r"'bad' is worse.*for image: mean recall 0\.\d+ against 0\.\d+ on 60 "
    ) as said:
        run(home, bad)
    assert "--force" in str(said.value)
    assert sorted(path for path in (home / "c").rglob("*")) == before
    assert run(home, bad, FORCED).reprojected == PAIRS
    assert run(home, good).reprojected == PAIRS


def test_no_object_is_read_and_no_model_is_loaded(
    home: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, space_with(tmp_path / "good", tiny_space, by_heart(home)))
    bad = resolved(space_with(tmp_path / "bad", tiny_space, at_random()))

    def never(*_: object) -> None:
        raise AssertionError("an object was read or a model loaded")

    monkeypatch.setattr("batchproj.source.reading.read_pinned", never)
    monkeypatch.setattr("batchproj.space.Member.load", never)
    live = live_snapshot(Folder(str(home / "c")))
    assert live is not None
    with pytest.raises(UsageError, match="is worse"):
        refuse_if_worse(Folder(str(home / "c")), live, bad, quiet)


def test_a_plain_rerun_and_a_first_run_are_not_judged(
    home: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("opened for judging")

    monkeypatch.setattr("batchproj.gate.Collection", never)
    assert run(home, tiny_space).unchanged == 2 * PAIRS
    shutil.rmtree(home / "c")
    assert run(home, space_with(tmp_path / "bad", tiny_space, at_random())).embedded == 2 * PAIRS


def test_luck_refuses_nothing(home: Path, tmp_path: Path, tiny_space: Path) -> None:
    """Projectors of equal worth, which is none, take each other's place."""
    refused = 0
    live = live_snapshot(Folder(str(home / "c")))
    assert live is not None
    for seed in range(12):
        space = space_with(tmp_path / f"random{seed}", tiny_space, at_random(seed))
        try:
            refuse_if_worse(Folder(str(home / "c")), live, resolved(space), quiet)
        except UsageError:
            refused += 1
    assert refused <= 1


def test_another_encoder_is_not_judged(home: Path, tmp_path: Path, tiny_space: Path) -> None:
    run(home, space_with(tmp_path / "good", tiny_space, by_heart(home)))
    bad = space_with(tmp_path / "bad", tiny_space, at_random())
    document = yaml.safe_load((bad / "space.yaml").read_text())
    document["image"]["encoder"]["dtype"] = "fp32" if document["image"]["encoder"].get("dtype") != "fp32" else "bf16"
    (bad / "space.yaml").write_text(yaml.safe_dump(document))
    heard: list[str] = []
    assert run(home, bad, heard=heard).embedded == PAIRS
    assert any("the encoder of image is another one" in line for line in heard)


def test_only_pairs_that_neither_space_has_seen_are_judged(home: Path, tmp_path: Path, tiny_space: Path) -> None:
    """A projector that knows all but the held-out pairs by heart gains nothing from those."""
    bad = space_with(tmp_path / "bad", tiny_space, at_random())
    document = yaml.safe_load((bad / "space.yaml").read_text())
    (bad / "space.yaml").write_text(yaml.safe_dump({**document, "split": {"seed": 0, "test_fraction": 0.1}}))
    run(home, space_with(tmp_path / "good", tiny_space, by_heart(home)))
    heard: list[str] = []
    run(home, bad, heard=heard)
    assert any("not judged" in line and "held-out pairs" in line for line in heard)


def test_a_changed_text_projector_is_judged_too(home: Path, tmp_path: Path, tiny_space: Path) -> None:
    good = space_with(tmp_path / "good", tiny_space, by_heart(home))
    run(home, good)
    bad = space_with(tmp_path / "bad", tiny_space, by_heart(home))
    document = yaml.safe_load((bad / "space.yaml").read_text())
    document["text"]["projector"] = {"kind": "linear", "weights": "text.safetensors"}
    (bad / "text.safetensors").write_bytes(at_random(3).to_bytes())
    (bad / "space.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(UsageError, match="is worse than the live one for image"):
        run(home, bad)


def test_vectors_judged_are_the_ones_embed_would_write(home: Path, tmp_path: Path, tiny_space: Path) -> None:
    from batchproj.gate import _only, _side, _unseen_rows

    good = resolved(space_with(tmp_path / "good", tiny_space, by_heart(home)))
    collection = Collection(str(home / "c"))
    rows = _only(found := _unseen_rows(collection, good), Modality.IMAGE, found["group"])
    side = _side(collection, good.members[Modality.IMAGE], rows)
    run(home, tmp_path / "good")
    table = Collection(str(home / "c")).table()
    written = {row["id"]: row["vector"] for row in table.to_pylist()}
    np.testing.assert_array_equal(side.new, [written[each] for each in sorted(rows["id"].to_pylist())])


def test_pictures_without_a_text_are_not_judged(tmp_path: Path, tiny_space: Path) -> None:
    for number in range(3):
        write_picture(tmp_path / "corpus" / f"{number}.png", number)
    source, collection = str(tmp_path / "corpus"), str(tmp_path / "c")
    embed(source, collection, resolved(tiny_space), OPTIONS, Watch())
    other = resolved(space_with(tmp_path / "random", tiny_space, at_random()))
    assert embed(source, collection, other, OPTIONS, Watch()).reprojected == 3
