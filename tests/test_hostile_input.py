"""Every broken and hostile file there is, in one folder with good ones: exactly the good ones are embedded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from enlivened import enlivened
from hostile import all_bad, drawn, odd_others, odd_pictures, saved, short_film, sound, tone
from in_process import command, run, vectors, without_ray
from PIL import Image
from table_files import quarantined
from tiny_pictures import save_clip
from tiny_text import save_clap

from batchproj import embedding, stages
from batchproj.embed import Options, Watch, embed
from batchproj.errors import UsageError
from batchproj.explain import explain, lines
from batchproj.recipe import Recipe, Units
from batchproj.space import open_space, resolve

OPTIONS = Options(Recipe(units=Units(max_items=200), read_threads=2))
PLAIN = 60 - 27
"""Good files that nothing is odd about; with the odd ones and their straight twins there are 60."""


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four modalities; sound by a projector that nobody trained, and without its silence."""
    home = tmp_path_factory.mktemp("space")
    clip, clap = (str(enlivened(save(home / save.__name__))) for save in (save_clip, save_clap))
    members: dict[str, Any] = {
        name: {"encoder": {"kind": "clip", "model": clip, "dtype": "fp32"}} for name in ("text", "image", "video")
    }
    members["video"]["segments"] = {"frames": 2}
    members["audio"] = {
        "encoder": {"kind": "clap", "model": clap, "dtype": "fp32"},
        "projector": {"kind": "linear"},
        "segments": {"seconds": 2, "overlap": 0, "skip_silence": True},
    }
    (home / "space.yaml").write_text(yaml.safe_dump({"name": "four", "dim": 24, **members}))
    return home


def plain(count: int) -> dict[str, bytes]:
    makers = [
        ("png", lambda n: saved(drawn(n + 200), "PNG")),
        ("txt", lambda n: f"w{n % 13 + 1} w{n % 7 + 1} w{n % 5 + 1}".encode()),
        ("wav", lambda n: sound(tone(0.6, n), "WAV")),
        ("mp4", short_film),
    ]
    return {f"plain{n}.{makers[n % 4][0]}": makers[n % 4][1](n) for n in range(count)}


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def by_name(collection: Path) -> dict[str, bytes]:
    """Bytes of the live vectors by file name; those of an item's segments one after the other."""
    found: dict[str, bytes] = {}
    for uri, value in vectors(collection).items():
        name = uri.rpartition("/")[2]
        found[name] = found.get(name, b"") + value
    return found


def test_sixty_good_files_among_forty_bad_ones(space: Path, tmp_path: Path) -> None:
    odd, bad = odd_pictures() | odd_others(), all_bad()
    good = plain(60 - len(odd)) | odd
    assert len(good) == 60
    assert len(bad) >= 40
    write_all(tmp_path / "s", good)
    alone = run(tmp_path / "s", tmp_path / "alone", space, OPTIONS)
    assert (alone.embedded, alone.quarantined) == (60, 0)
    write_all(tmp_path / "s", {name: data for name, (data, _, _) in bad.items()})
    report = run(tmp_path / "s", tmp_path / "c", space, OPTIONS)
    assert (report.items, report.embedded, report.quarantined) == (60 + len(bad), 60, len(bad))
    found = by_name(tmp_path / "c")
    assert found == by_name(tmp_path / "alone")
    assert found.keys() == good.keys()
    given = {uri.rpartition("/")[2]: text for uri, text in quarantined(tmp_path / "c", report).items()}
    assert given.keys() == bad.keys()
    assert {name: text for name, text in given.items() if not text.startswith(f"{bad[name][1]}: {bad[name][2]}")} == {}
    assert all(text.isprintable() for text in given.values())
    straight = [name for name in good if ".straight." in name]
    assert len(straight) >= 10
    for name in straight:
        (stored,) = [other for other in good if other.partition(".")[0] == name.partition(".")[0] and other != name]
        assert found[stored] == found[name], stored
    check_warnings(tmp_path / "s", tmp_path / "c")


def check_warnings(source: Path, collection: Path) -> None:
    """Who asks for an item whose name lies is told."""
    for name, said in {
        "named.jpg": "named as JPEG, it is PNG",
        "picture.txt": "named as text, it is image",
        "no-pictures.mp4": "named as video, it is audio",
    }.items():
        told = explain(str(collection), str(source / name))
        assert told.detail == said
        assert f"note      {said}; embedded as what it is" in lines(told)
    assert explain(str(collection), str(source / "plain0.png")).detail is None


def test_a_run_warns_of_names_that_lie(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str | None] = []
    line = stages.misnamed_line
    monkeypatch.setattr(stages, "misnamed_line", lambda *given: said.append(line(*given)) or said[-1])
    write_all(tmp_path / "s", {"a.jpg": saved(drawn(1), "PNG"), "b.gif": saved(drawn(2), "PNG"), "c.png": b""})
    run(tmp_path / "s", tmp_path / "c", space, OPTIONS)
    assert said == [
        f"warning: file://{tmp_path}/s/a.jpg is named as JPEG, it is PNG; embedded as what it is, and 1 more beside it"
    ]


def test_before_it_counts_anew_a_run_says_why(space: Path, tmp_path: Path) -> None:
    said: list[str] = []
    write_all(tmp_path / "s", {"a.txt": b"w1", "b.txt": saved(drawn(1), "PNG"), "c": b"w3"})
    watch = Watch(said.append, lambda before, todo: said.append(f"{before}, {todo}"))
    embed(str(tmp_path / "s"), str(tmp_path / "c"), resolve(open_space(str(space))), OPTIONS, watch)
    why = said.index("embedding what names did not tell: 2 items")
    assert said[why + 1] == "{}, {'image': 1, 'text': 1}"


def test_more_bad_files_than_allowed_is_exit_code_3(tiny_space: Path, tmp_path: Path) -> None:
    write_all(tmp_path / "s", {"a.txt": b"w1", "b.txt": b"", "c.txt": b" "})
    done = command("embed", tmp_path / "s", tmp_path / "c", "--space", tiny_space, "--max-bad", "0.5")
    assert done.returncode == 3
    assert "2 of 3 items are in quarantine" in done.stderr
    write_all(tmp_path / "s", {"d.txt": b"w2", "e.txt": b"w3"})
    done = command("embed", tmp_path / "s", tmp_path / "c", "--max-bad", "0.5")
    assert done.returncode == 0


def broken(monkeypatch: pytest.MonkeyPatch, is_broken: Any) -> None:
    """Encoders give NaN for what `is_broken` says."""
    encode = embedding.Embedder.encode

    def instead(self: Any, segments: Any) -> Any:
        features = encode(self, segments)
        return [
            np.full_like(row, np.nan) if is_broken(each) else row for each, row in zip(segments, features, strict=True)
        ]

    monkeypatch.setattr(embedding.Embedder, "encode", instead)


def test_nan_for_one_item_is_a_row_and_for_all_is_the_end(
    tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "s", {f"{n}.txt": f"w{n} w3".encode() for n in range(1, 7)})
    with monkeypatch.context() as patched:
        broken(patched, lambda _: True)
        with pytest.raises(UsageError, match="vectors of all 6 text items are not finite; nothing was made visible"):
            run(tmp_path / "s", tmp_path / "c", tiny_space)
    done = command("search", tmp_path / "c", "w1")
    assert done.returncode == 2
    assert "the first run of" in done.stderr
    assert "is not finished" in done.stderr
    with monkeypatch.context() as patched:
        broken(patched, lambda segment: segment.data == "w4 w3")
        report = run(tmp_path / "s", tmp_path / "c", tiny_space)  # nothing of the run before is taken for done
    assert (report.embedded, report.quarantined) == (5, 1)
    (found,) = quarantined(tmp_path / "c", report).values()
    assert found == "not_finite: the encoder returned NaN or infinity"
    write_all(tmp_path / "s", {"7.txt": b"w7", "8.txt": b"w8"})
    with monkeypatch.context() as patched:  # beside sound ones of the same encoder it is the items' fault
        broken(patched, lambda _: True)
        assert run(tmp_path / "s", tmp_path / "c", tiny_space).quarantined == 3


def test_a_jpeg_of_a_hundred_megapixels_is_the_small_picture(space: Path, tmp_path: Path) -> None:
    small = Image.fromarray(drawn(70, 500, 500))
    huge = saved(small.resize((10_000, 10_000), Image.Resampling.BILINEAR), "JPEG", quality=85)
    write_all(tmp_path / "s", {"huge.jpg": huge, "small.png": saved(small, "PNG")})
    assert run(tmp_path / "s", tmp_path / "c", space, OPTIONS).embedded == 2
    found = {uri.rpartition("/")[2]: np.frombuffer(value, np.float32) for uri, value in vectors(tmp_path / "c").items()}
    assert found["huge.jpg"] @ found["small.png"] > 0.99
    assert len(io.BytesIO(huge).getvalue()) < 20_000_000
