"""The sound of films as items beside the films: listed, read, found, changed, forgotten, left out again."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from films import film, seconds_of
from in_process import OPTIONS, command, quiet, run, vectors, without_ray
from runs import live_rows
from table_files import listed, quarantined, write
from tiny_sound import save_whisper

from batchproj import verify
from batchproj.decode.audio import stream_audio
from batchproj.decode.extensions import is_film
from batchproj.decode.limits import Limits
from batchproj.decode.sniff import sound_of
from batchproj.embed import Watch
from batchproj.errors import ItemFault, SourceError, UsageError
from batchproj.explain import explain
from batchproj.forget import forget
from batchproj.media import AudioSpec
from batchproj.repair import repair
from batchproj.schema import Modality
from batchproj.source.listing import Seal, list_items
from batchproj.source.reading import read_items

WITH_SOUND = replace(OPTIONS, recipe=OPTIONS.recipe.model_copy(update={"sound_tracks": True}))


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def heard() -> bytes:
    return film(seconds_of(2, 10), sound=True)


@pytest.fixture(scope="module")
def silent() -> bytes:
    return film(seconds_of(1, 10))


@pytest.fixture(scope="module")
def space(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film-space")
    clip = f"encoder: {{kind: clip, model: {tiny_clip}, dtype: fp32}}"
    whisper = f"encoder: {{kind: whisper, model: {save_whisper(folder / 'whisper')}, dtype: fp32}}"
    (folder / "space.yaml").write_text(
        f"dim: 24\ntext: {{{clip}}}\nvideo: {{{clip}}}\n"
        f"audio: {{{whisper}, projector: {{kind: linear}}, segments: {{seconds: 0.6, overlap: 0}}}}\n"
    )
    return folder / "space.yaml"


@pytest.fixture
def corpus(tmp_path: Path, heard: bytes, silent: bytes) -> Path:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "frog.mp4").write_bytes(heard)
    (folder / "frog.txt").write_text("w1 w2")
    (folder / "still.mp4").write_bytes(silent)
    (folder / "unnamed.bin").write_bytes(heard)
    return folder


def by_name(collection: object) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(live_rows(collection).to_pylist(), key=lambda row: row["segment"]):
        found.setdefault(row["uri"].rpartition("/")[2], []).append(row)
    return found


def test_the_sound_of_a_film_is_an_item_of_its_own_in_the_pair_of_the_film(
    corpus: Path, tmp_path: Path, space: Path, reads: Counter[str]
) -> None:
    report = run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert (report.items, report.embedded, report.quarantined) == (6, 5, 1)
    rows = by_name(tmp_path / "c")
    assert rows.keys() == {"frog.mp4", "frog.mp4#audio", "frog.txt", "still.mp4", "unnamed.bin"}
    sound, picture = rows["frog.mp4#audio"], rows["frog.mp4"][0]
    assert {row["modality"] for row in sound} == {"audio"}
    # AAC comes in frames of 1,024 samples, so a second of it is a little longer
    assert [each for row in sound for each in (row["start"], row["end"])] == pytest.approx([0, 0.6, 0.6, 1.024])
    assert {row["item"] for row in sound} != {picture["item"]}
    assert {(row["pair"], row["source_version"]) for row in sound} == {("frog", picture["source_version"])}
    assert quarantined(tmp_path / "c", report) == {"audio": "no_sound_track: the film has no sound track"}
    reads.clear()
    again = run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert (again.commit, again.unchanged, again.quarantined, reads) == (None, 5, 1, {})
    assert verify.verify(str(tmp_path / "c"), quiet).damaged == []


def test_search_and_explain_name_it(corpus: Path, tmp_path: Path, space: Path) -> None:
    run(corpus, tmp_path / "c", space, WITH_SOUND)
    hits = json.loads(command("search", tmp_path / "c", "w1", "--modality", "audio", "--json").stdout)
    assert [hit["uri"] for hit in hits] == [f"file://{corpus}/frog.mp4#audio"] * 2
    assert sorted(hit["start"] for hit in hits) == pytest.approx([0, 0.6])
    found = explain(str(tmp_path / "c"), f"{corpus}/frog.mp4#audio")
    assert (found.modality, found.now, found.pair) == ("audio", "unchanged", "frog")
    (corpus / "frog.mp4").write_bytes(b"other")
    assert explain(str(tmp_path / "c"), f"{corpus}/frog.mp4#audio").now == "changed since"


def test_silent_films_do_not_count_as_bad(corpus: Path, tmp_path: Path, space: Path) -> None:
    (corpus / "recipe.yaml").write_text("sound_tracks: true\n")
    told = ("--space", space, "--recipe", corpus / "recipe.yaml", "--max-bad", "0")
    assert command("embed", corpus, tmp_path / "c", *told).returncode == 0
    (corpus / "bad.mp4").write_bytes((corpus / "frog.mp4").read_bytes()[:500])
    assert command("embed", corpus, tmp_path / "c", *told).returncode == 3


def test_a_changed_film_changes_both_and_a_moved_one_is_known(
    corpus: Path, tmp_path: Path, space: Path, silent: bytes
) -> None:
    run(corpus, tmp_path / "c", space, WITH_SOUND)
    (corpus / "frog.mp4").rename(corpus / "toad.mp4")
    moved = run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert (moved.copied, moved.embedded, moved.deleted) == (2, 0, 2)
    (corpus / "toad.mp4").write_bytes(silent)
    changed = run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert (changed.copied, changed.quarantined) == (1, 2)
    assert "toad.mp4#audio" not in by_name(tmp_path / "c")


def test_without_the_option_sound_tracks_leave_again(corpus: Path, tmp_path: Path, space: Path) -> None:
    run(corpus, tmp_path / "c", space, WITH_SOUND)
    with pytest.raises(UsageError, match="2 of 6 items are no longer in the source, 2 sound tracks among them"):
        run(corpus, tmp_path / "c", space)
    assert run(corpus, tmp_path / "c", space, replace(OPTIONS, allow_mass_delete=True)).deleted == 2
    assert run(corpus, tmp_path / "c", space, WITH_SOUND).copied == 0  # the run that had it is not the live one


def test_its_damaged_features_are_made_again_by_whoever_repairs(corpus: Path, tmp_path: Path, space: Path) -> None:
    run(corpus, tmp_path / "c", space, WITH_SOUND)
    before = vectors(tmp_path / "c")
    features = explain(str(tmp_path / "c"), f"{corpus}/frog.mp4#audio").features
    assert features
    (tmp_path / "c" / features).write_bytes(b"lost")
    done = repair(str(tmp_path / "c"), OPTIONS, Watch())
    assert done.report
    assert (done.report.embedded, done.report.unchanged, done.now.of(done.now.live)) == (1, 4, [])
    assert vectors(tmp_path / "c") == before


def test_to_forget_a_film_is_to_forget_its_sound(corpus: Path, tmp_path: Path, space: Path) -> None:
    run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert forget(str(tmp_path / "c"), str(corpus / "frog.mp4"), quiet).rows == 3
    report = run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert (report.commit, by_name(tmp_path / "c").keys()) == (None, {"frog.txt", "still.mp4", "unnamed.bin"})


def test_the_sound_alone_is_forgotten(corpus: Path, tmp_path: Path, space: Path) -> None:
    run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert forget(str(tmp_path / "c"), f"{corpus}/frog.mp4#audio", quiet).rows == 2
    assert run(corpus, tmp_path / "c", space, WITH_SOUND).commit is None
    assert by_name(tmp_path / "c").keys() == {"frog.mp4", "frog.txt", "still.mp4", "unnamed.bin"}


def test_films_in_tables_and_shards_have_a_sound_track_too(
    corpus: Path, tmp_path: Path, space: Path, heard: bytes
) -> None:
    table = write(corpus / "t.jsonl", [{"id": "a", "uri": "frog.mp4"}, {"uri": "frog.mp4", "id": "b"}])
    run(table, tmp_path / "c", space, WITH_SOUND)
    assert len(live_rows(tmp_path / "c")) == 2 * 3
    with pytest.raises(UsageError, match=r"several rows name .*#id=a#audio, .*#id=b#audio"):
        explain(str(tmp_path / "c"), f"{corpus}/frog.mp4#audio")
    assert explain(str(tmp_path / "c"), f"{table}#id=a#audio").now == "unchanged"
    assert forget(str(tmp_path / "c"), f"{table}#id=a", quiet).rows == 3
    assert len(live_rows(tmp_path / "c")) == 3

    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        member = tarfile.TarInfo("frog.mp4")
        member.size = len(heard)
        shard.addfile(member, io.BytesIO(heard))
    first = run(tmp_path / "x.tar", tmp_path / "d", space, WITH_SOUND)
    assert (first.embedded, {row["pair"] for row in live_rows(tmp_path / "d").to_pylist()}) == (2, {"frog"})
    assert run(tmp_path / "x.tar", tmp_path / "d", space, WITH_SOUND).unchanged == 2
    assert explain(str(tmp_path / "d"), f"{tmp_path}/x.tar#frog.mp4#audio").now == "unchanged"
    # the shard is the same, and listed again all the same
    assert run(tmp_path / "x.tar", tmp_path / "d", space, replace(OPTIONS, allow_mass_delete=True)).deleted == 1


def test_the_sound_of_a_row_without_an_id_is_forgotten_with_the_row_alone(
    corpus: Path, tmp_path: Path, space: Path
) -> None:
    table = write(corpus / "t.csv", [{"uri": "frog.mp4"}, {"uri": "frog.txt"}])
    run(table, tmp_path / "c", space, WITH_SOUND)
    with pytest.raises(UsageError, match=r"whose number may change; forget .*t\.csv#row=1$"):
        forget(str(tmp_path / "c"), f"{table}#row=1#audio", quiet)
    assert forget(str(tmp_path / "c"), f"{table}#row=1", quiet).rows == 3


def test_an_object_that_is_called_as_a_sound_track_is_refused(corpus: Path, tmp_path: Path, space: Path) -> None:
    (corpus / "frog.mp4#audio").write_text("w1")
    with pytest.raises(SourceError, match=r"frog.mp4#audio is an object's name and that of a film's sound track"):
        run(corpus, tmp_path / "c", space, WITH_SOUND)
    assert run(corpus, tmp_path / "c", space).embedded == 5


def test_a_space_without_sound_is_refused(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    with pytest.raises(UsageError, match="the recipe has sound_tracks, and space 'tiny' no audio encoder"):
        run(corpus, tmp_path / "c", tiny_space, WITH_SOUND)
    assert not (tmp_path / "c").exists()


def test_a_faulty_row_or_member_has_no_sound_track(corpus: Path) -> None:
    def with_sound(source: Path) -> list[dict[str, Any]]:
        pages = [page for page in list_items(str(source), "file:///c", is_film=is_film) if not isinstance(page, Seal)]
        return [row for page in pages for row in page.to_pylist()]

    table = write(corpus / "t.jsonl", [{"uri": "gone.mp4"}, {"uri": "frog.mp4"}])
    rows = with_sound(table)
    assert [row["uri"].rpartition("/")[2] for row in rows] == ["t.jsonl#row=1", "frog.mp4", "frog.mp4#audio"]
    read = read_items(rows[1:], 1 << 20, 1)
    assert read[0] == read[1] == (corpus / "frog.mp4").read_bytes()
    assert len(listed(table)) == 2
    with tarfile.open(corpus / "x.tar", "w") as shard:
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "frog.mp4"
        shard.addfile(link)
    assert [row["uri"].rpartition("#")[2] for row in with_sound(corpus / "x.tar")] == ["link.mp4"]


def test_what_is_no_film_has_no_sound_track() -> None:
    with pytest.raises(ItemFault, match="no_sound_track: no film but text, which is embedded by itself"):
        sound_of(Modality.TEXT)


@pytest.mark.parametrize("format", ["mp4", "matroska"])
@pytest.mark.parametrize("late", [0.0, 0.6])
def test_its_times_are_the_films(format: str, late: float) -> None:
    data = sounding_late(format, late)
    segments = list(stream_audio(data, AudioSpec(16_000, 30.0), Limits()))
    assert segments[0].start == pytest.approx(late, abs=0.05)
    assert segments[-1].end == pytest.approx(late + 1, abs=0.1)


def sounding_late(format: str, late: float) -> bytes:
    """A film of two seconds whose sound of one second begins `late` seconds after its first frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as opened:
        pictures: Any = opened.add_stream("libx264", rate=10)
        pictures.height, pictures.width, pictures.pix_fmt = 48, 64, "yuv420p"
        sounds: Any = opened.add_stream("aac", rate=48_000, layout="mono")
        for number, pixels in enumerate(seconds_of(2, 10)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            opened.mux(pictures.encode(frame))
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 48_000)).astype(np.float32)
        samples: Any = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 48_000, round(late * 48_000)
        opened.mux([*sounds.encode(samples), *sounds.encode(None), *pictures.encode(None)])
    return file.getvalue()
