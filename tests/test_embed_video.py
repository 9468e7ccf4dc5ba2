"""Videos among texts and pictures, from a folder to search results: what is embedded, found, refused, left alone."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import write_picture, write_words
from films import Pixels, film, only_sound
from in_process import command, without_ray
from long_item import TOGETHER_MIB, WORKER_MIB, embedded_alone
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import batchproj
from batchproj import fit
from batchproj.collection.cache import live_features
from batchproj.collection.unit import Unit
from batchproj.decode.item import PIECE, PieceSize
from batchproj.decode.limits import Limits
from batchproj.decoding import Fetched
from batchproj.embed import Options, Report, Watch
from batchproj.embed import embed as run_embed
from batchproj.embedding import UnitWorker
from batchproj.errors import UsageError
from batchproj.estimate import make_plan
from batchproj.objectstore import Folder
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality
from batchproj.space import open_space, resolve
from batchproj.train import TrainOptions, train

PLACES = {"frog": (0, 1), "river": (2, 3), "night": (4, 5)}
"""Each video: two pictures, four seconds of each."""

FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "frog": ("mp4", {"sound": True}),
    "river": ("webm", {"format": "webm", "codec": "libvpx-vp9"}),
    "night": ("bin", {"format": "avi", "codec": "mpeg4"}),
}


def picture(seed: int) -> Pixels:
    """Large coloured tiles, which any codec keeps, 64 x 48."""
    tiles = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return tiles.repeat(16, 0).repeat(16, 1)


def two_scenes(first: int, second: int) -> list[Pixels]:
    return [picture(first)] * 40 + [picture(second)] * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, their captions, the picture of each's second scene, three other pictures; and faulty files."""
    folder = tmp_path_factory.mktemp("videos") / "corpus"
    for seed, (name, (first, second)) in enumerate(PLACES.items()):
        write_words(folder / name / f"{name}.txt", seed)
        Image.fromarray(picture(second)).save(folder / name / f"{name}.png")
        write_picture(folder / "others" / f"{seed}.png", seed)
        suffix, options = FILES[name]
        (folder / name / f"{name}.{suffix}").write_bytes(film(two_scenes(first, second), **options))
    whole = (folder / "frog/frog.mp4").read_bytes()
    (folder / "bad").mkdir()
    (folder / "bad/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "bad/page.mov").write_text("<html>404</html>")
    (folder / "bad/list.mkv").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    (folder / "bad/sound.mp4").write_bytes(only_sound())
    return folder


@pytest.fixture
def corpus(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture(scope="module")
def space(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("space") / "space.yaml"
    encoder = f"encoder: {{kind: clip, model: {tiny_clip}, dtype: fp32}}"
    segments = "segments: {seconds: 4, frames: 3}"
    file.write_text(
        f"dim: 24\ntext: {{{encoder}}}\nimage: {{{encoder}}}\nvideo: {{{encoder}, {segments}}}\n",
    )
    return file


def embed(source: Path, collection: Path, space: Path, **limits: Any) -> Report:
    recipe = Recipe(units=Units(max_items=8), read_threads=2, limits=Limits(**limits))
    return run_embed(str(source), str(collection), resolve(open_space(str(space))), Options(recipe), Watch())


@pytest.fixture
def collection(corpus: Path, tmp_path: Path, space: Path) -> Path:
    with without_ray():
        embed(corpus, tmp_path / "c", space)
    return tmp_path / "c"


def check(corpus: Path, collection: Path, report: Report) -> None:
    assert (report.items, report.embedded, report.quarantined) == (16, 12, 4)
    assert report.encode_calls == {"text": 3, "image": 6, "video": 6}
    rows = [row for row in batchproj.open(str(collection)).table().to_pylist() if row["modality"] == "video"]
    frog = sorted((row for row in rows if row["uri"].endswith("frog.mp4")), key=lambda row: row["segment"])
    assert [(row["segment"], row["start"], row["end"]) for row in frog] == [(0, 0, 4), (1, 4, 8)]
    assert [(row["id"], row["pair"]) for row in frog] == [(f"{frog[0]['item']}-{n}", "frog/frog") for n in (0, 1)]
    assert sorted(row["uri"].rpartition("/")[2] for row in rows) == sorted(["frog.mp4", "night.bin", "river.webm"] * 2)
    bad = pq.read_table(collection / "quarantine" / f"{report.run}.parquet").to_pylist()
    assert {row["uri"].rpartition("/")[2]: row["reason"] for row in bad} == {
        "cut.mp4": "truncated",
        "page.mov": "wrong_type",
        "list.mkv": "unsupported_format",
        "sound.mp4": "no_encoder",  # audio
    }
    assert {row["uri"].rpartition("/")[2]: row["modality"] for row in bad}["sound.mp4"] == "audio"


def test_videos_are_embedded_beside_texts_and_pictures(corpus: Path, tmp_path: Path, space: Path) -> None:
    with without_ray():
        report = embed(corpus, tmp_path / "c", space)
        check(corpus, tmp_path / "c", report)
        again = embed(corpus, tmp_path / "c", space)
    assert (again.unchanged, again.quarantined, again.encode_calls) == (12, 4, {})


@pytest.mark.long
def test_videos_through_ray_give_the_same_vectors(
    corpus: Path, tmp_path: Path, space: Path, collection: Path, ray_here: None
) -> None:
    report = embed(corpus, tmp_path / "ray", space)
    check(corpus, tmp_path / "ray", report)

    def vectors(collection: Path) -> dict[str, list[float]]:
        table = batchproj.open(str(collection)).table()
        return dict(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))

    assert vectors(tmp_path / "ray") == vectors(collection)


def test_a_picture_finds_the_place_in_the_video(corpus: Path, collection: Path) -> None:
    for name in PLACES:
        done = command("search", collection, "--image", corpus / name / f"{name}.png", "--modality", "video", "--json")
        hits = json.loads(done.stdout)
        assert len(hits) == 6
        assert (hits[0]["pair"], hits[0]["segment"], hits[0]["start"], hits[0]["end"]) == (f"{name}/{name}", 1, 4, 8)
        assert hits[0]["score"] > 0.99


def test_many_threads_may_ask_one_collection(corpus: Path, collection: Path) -> None:
    opened = batchproj.open(str(collection))
    opened.embedder(Modality.IMAGE)
    with ThreadPoolExecutor(4) as pool:
        asked = [name for _ in range(6) for name in PLACES]
        queries = [corpus / name / f"{name}.png" for name in asked]
        found = list(pool.map(lambda query: opened.search(image=query, modality="video", k=1)[0].pair, queries))
    assert found == [f"{name}/{name}" for name in asked]


def test_a_video_finds_what_is_like_it(corpus: Path, collection: Path, tmp_path: Path) -> None:
    query = tmp_path / "query.mkv"
    query.write_bytes(film([picture(3)] * 20, format="matroska", codec="mpeg4"))
    opened = batchproj.open(str(collection))
    best = opened.search(video=query, k=2)
    assert {hit.uri.rpartition("/")[2]: round(hit.score, 1) for hit in best} == {"river.png": 1.0, "river.webm": 1.0}
    done = command("search", collection, "--video", query, "-k", 2)
    assert "00:04-00:08" in done.stdout
    with pytest.raises(UsageError, match="is audio, not video; search by it as audio"):
        opened.search(video=corpus / "bad/sound.mp4")
    with pytest.raises(UsageError, match=r"cannot be embedded: truncated"):
        opened.search(video=corpus / "bad/cut.mp4")
    with pytest.raises(UsageError, match="is video, not image; search by it as video"):
        opened.search(image=query)


def test_a_projector_that_pools_frames_with_attention(tiny_clip: Path, tmp_path: Path) -> None:
    for seed in range(12):
        write_words(tmp_path / "corpus" / f"{seed}.txt", seed)
        (tmp_path / "corpus" / f"{seed}.mp4").write_bytes(film([picture(seed)] * 5 + [picture(50 + seed)] * 5))
    encoder = f"encoder: {{kind: clip, model: {tiny_clip}}}"
    settings = "cache: tokens, projector: {kind: cross_attention}, segments: {frames: 4}"
    file = tmp_path / "space.yaml"
    file.write_text(f"dim: 24\ntext: {{{encoder}}}\nvideo: {{{encoder}, {settings}}}\n")
    collection, out = tmp_path / "c", tmp_path / "trained"
    options = {"width": 16, "heads": 2}
    with without_ray():
        assert embed(tmp_path / "corpus", collection, file).encode_calls == {"text": 12, "video": 12}
        snapshot = batchproj.open(str(collection)).snapshot
        cached = live_features(Folder(str(collection)), snapshot, Modality.VIDEO)
        assert cached is not None
        assert [len(tokens) for tokens in cached["feature"]] == [4] * 12
        quick = TrainOptions("cross_attention", Modality.VIDEO, fit=fit.Config(max_steps=10, checks=2, options=options))
        made = train(str(collection), str(out), quick, lambda *_: None, lambda _: None)
        assert made["modality"]["video"]["projector"] == "cross_attention"
        report = embed(tmp_path / "corpus", collection, out)
    assert (report.reprojected, report.encode_calls) == (12, {})
    video = tmp_path / "corpus/3.mp4"
    best = batchproj.open(str(collection)).search(video=video, k=1, modality="video")[0]
    assert (best.uri.rpartition("/")[2], best.score) == ("3.mp4", pytest.approx(1, abs=1e-5))


def test_another_cut_is_another_fingerprint(corpus: Path, collection: Path, space: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes.yaml"
    scenes.write_text(space.read_text().replace("seconds: 4,", "seconds: 20, at: scene,"))
    with without_ray():
        report = embed(corpus, collection, scenes)
    assert report.encode_calls == {"video": 6}  # a scene is four seconds long: the same cut, but that must be looked at
    told = batchproj.open(str(collection)).runs()[-1]["differences"]
    assert {(each["modality"], each["field"]) for each in told} == {
        ("video", "encoder.segments.at"),
        ("video", "encoder.segments.seconds"),
    }


def test_a_limit_that_is_raised_lets_a_long_video_in(corpus: Path, tmp_path: Path, space: Path) -> None:
    with without_ray():
        first = embed(corpus, tmp_path / "c", space, video_s=7)
        assert (first.embedded, first.quarantined) == (9, 7)
        second = embed(corpus, tmp_path / "c", space, video_s=9)
        assert (second.embedded, second.quarantined) == (3, 4)


def test_plan_counts_and_times_videos(corpus: Path, tmp_path: Path, space: Path) -> None:
    found = make_plan(str(corpus), str(tmp_path / "c"), resolve(open_space(str(space))), Recipe(), None, print)
    assert found.encodes["video"] == 6  # by their names: three faulty ones, and not the one called .bin
    assert found.encodes["unclear"] == 1
    assert found.calibration["video"].encode_s_per_item > 0


def worker(space: Path, piece: PieceSize = PIECE) -> UnitWorker:
    members = resolve(open_space(str(space))).members
    made = UnitWorker(members[Modality.VIDEO], 24, frozenset(members), Limits(), 2, piece)
    made.load()
    return made


def fetched(*films: bytes) -> list[Fetched]:
    return [Fetched(f"item{n}", f"{n}.mp4", None, "v", data, f"sha{n}", f"{n}.mp4") for n, data in enumerate(films)]


UNIT = Unit(name="u", run="1", task="embed", modality=Modality.VIDEO, items=3, bytes=0)


def test_pieces_change_no_vector_and_no_order(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = fetched(*(film(two_scenes(*scenes)) for scenes in PLACES.values()))
    done: list[int] = []
    whole = worker(space).embed(UNIT, items, None, done.append)
    monkeypatch.setattr("batchproj.embedding.WINDOW_BYTES", 1)
    small = worker(space, PieceSize(nbytes=1)).embed(UNIT, items, None, done.append)
    assert whole.vectors.num_rows == 6
    assert small.vectors.equals(whole.vectors)
    assert small.features.equals(whole.features)
    assert (small.encoded, sum(done)) == (6, 6)


def test_a_fault_late_in_a_video_leaves_nothing_of_it(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = film(two_scenes(0, 1) * 2, format="matroska", codec="ffv1", gop=1)
    broken = bytearray(good)
    broken[len(good) * 7 // 8 : len(good) * 7 // 8 + 3000] = bytes(3000)
    monkeypatch.setattr("batchproj.embedding.WINDOW_BYTES", 1)
    output = worker(space, PieceSize(nbytes=1)).embed(UNIT, fetched(good, bytes(broken), good), None, lambda _: None)
    outcomes = output.outcome.to_pylist()
    assert [(each["status"], each["reason"]) for each in outcomes] == [
        ("embedded", None),
        ("quarantined", "corrupt"),
        ("embedded", None),
    ]
    assert output.encoded == 4 + 2 + 4  # the third of its four was decoded and waited for the fourth
    assert output.vectors["item"].to_pylist() == ["item0"] * 4 + ["item2"] * 4


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """720p, one frame a second that drifts, a keyframe every 250."""
    y, x = np.mgrid[0:720, 0:1280]
    drawn = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    shown = (np.roll(drawn, 8 * (number % 64), axis=1) for number in range(7_200))
    file = tmp_path_factory.mktemp("long") / "film.mp4"
    file.write_bytes(film(shown, fps=1, gop=250, options={"preset": "ultrafast"}))
    return file


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("at", ["length", "scene"])
def test_memory_does_not_grow_with_the_length(two_hours: Path, tmp_path: Path, at: str) -> None:
    """Two hours; what is taken of them, at the usual 224 pixels, would be 4 GB at once."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 224, "patch_size": 56}
    CLIPModel(CLIPConfig(text_config=small, vision_config=vision, projection_dim=24)).save_pretrained(tmp_path / "clip")
    geometry = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3}
    moments = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps({**geometry, **moments}))
    encoder = f"{{kind: clip, model: {tmp_path}/clip}}"
    file = tmp_path / "space.yaml"
    file.write_text(f"dim: 24\nvideo: {{encoder: {encoder}, segments: {{seconds: 2, at: {at}}}}}\n")
    rows, memory = embedded_alone(file, Modality.VIDEO, two_hours)
    assert (rows.num_rows, rows["end"][-1].as_py()) == (3_600, 7_200)
    assert memory["peak_mib"] < WORKER_MIB
    assert memory["peak_mib"] + memory["decoders_mib"] < TOGETHER_MIB
    assert memory["peak_mib"] - memory["before_mib"] < 500
