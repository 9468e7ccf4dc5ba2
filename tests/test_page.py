"""The page in a real browser, on a real service with pictures, names and speech in the shipped space."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import soundfile
from films import film, seconds_of
from in_process import run, without_ray
from serving import EVIL_NAME, EVIL_TEXT, Client, embed_builtin, picture, served

pytest.importorskip("playwright", reason="playwright is not installed: pip install 'batchproj[dev]'")

from browsing import (
    CHROMIUM,
    PHONE,
    accessibility,
    clicked,
    dropped,
    found,
    opened,
    played,
    sideways,
    started,
    typed,
    watched,
)
from playwright.sync_api import Browser, Page, expect, sync_playwright

from batchproj import emoji_corpus, items
from batchproj.evaluate import evaluate
from batchproj.objectstore import Folder

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium, as .ci/run does"
)

EMOJI = 18
LONG_S = 40
"""Two windows of the sound encoder, which has 30 seconds."""


def write_collection(folder: Path) -> None:
    """Emoji as a table's rows with a year and a group, names that want to be HTML, and a long sound."""
    emoji_corpus.build(folder / "emoji", EMOJI, clips=1, workers=1)
    rows: list[dict[str, Any]] = []
    for number, drawing in enumerate(sorted((folder / "emoji").rglob("*.png"))):
        facts = {"pair": drawing.stem, "year": 2000 + number, "group": ["even", "odd"][number % 2]}
        for file in sorted(drawing.parent.glob(f"{drawing.stem}.*")):
            rows.append({"id": file.name, "uri": str(file.relative_to(folder)), **facts})
    (folder / EVIL_NAME).write_bytes(picture((200, 30, 90)))
    rows.append({"id": "evil", "uri": EVIL_NAME, "pair": None, "year": 1999, "group": "<b onclick=alert(2)>"})
    rows.append({"id": "script", "text": EVIL_TEXT, "pair": None, "year": 1999, "group": "odd"})
    at = np.arange(22_050 * LONG_S) / 22_050
    soundfile.write(folder / "long.flac", 0.2 * np.sin(2 * np.pi * 300 * at * (1 + (at > 30))), 22_050)
    rows.append({"id": "long", "uri": "long.flac", "pair": None, "year": 1999, "group": "odd"})
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_collection(folder)
    embed_builtin(folder / "table.jsonl", folder / "c")
    evaluate(str(folder / "c"))
    return folder


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[Client]:
    with served(made / "c") as asked:
        yield asked


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        one = started(playwright)
        yield one
        one.close()


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    with watched(browser, client.port) as one:
        yield opened(one, client.port)


@pytest.fixture(scope="module")
def name(made: Path) -> str:
    """Of an emoji, as its files have it."""
    return sorted(made.glob("emoji/*/*.png"))[0].stem


def words(name: str) -> str:
    return name.replace("_", " ")


def test_words_find_items_of_every_kind_and_the_address_tells_them(page: Page, name: str) -> None:
    expect(page.locator("#status")).to_contain_text(f"{EMOJI + 1} images, {EMOJI + 1} sounds, {EMOJI + 1} texts")
    names = typed(page, words(name))
    assert f"{name}.txt" in names[:3]
    assert {"image", "audio", "text"} == set(
        page.locator("#hits .card").evaluate_all("(cards) => cards.map((card) => card.dataset.kind)")
    )
    expect(page.locator("#status")).to_have_text("The first 24, best first, from run 000001")
    assert page.locator("#hits .why").first.inner_text() == "by meaning"
    assert float(page.locator("#hits .score").first.inner_text().split()[0]) > 0.5
    assert parse_qs(urlsplit(page.url).query) == {"q": [words(name)]}
    page.get_by_label("Match words too").check()
    expect(page.locator("#hits .why").first).to_have_text("by meaning and words")
    assert page.locator("#hits mark").first.inner_text() in words(name)
    page.go_back()
    expect(page.get_by_label("Match words too")).not_to_be_checked()
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("In this collection")
    expect(page.get_by_role("searchbox")).to_have_value("")


def test_the_rest_comes_page_by_page_and_nothing_twice(page: Page) -> None:
    for mixed in (True, False):
        page.get_by_label("Mix the kinds").set_checked(mixed)
        typed(page, f"an animal, {mixed}")
        while page.get_by_role("button", name="Show more", exact=True).is_visible():
            before = len(found(page))
            page.get_by_role("button", name="Show more", exact=True).click()
            expect(page.locator("#hits .card")).not_to_have_count(before)
            expect(page.locator("#results:not([aria-busy])")).to_be_attached()
        ids = page.locator("#hits .card").evaluate_all("(cards) => cards.map((card) => card.dataset.id)")
        assert len(ids) == len(set(ids)) == 3 * EMOJI + 4


@pytest.mark.parametrize("paste", [False, True])
def test_a_picture_that_is_dropped_or_pasted_finds_itself(page: Page, made: Path, name: str, paste: bool) -> None:
    data = next(made.glob(f"emoji/*/{name}.png")).read_bytes()
    names = dropped(page, "holiday.png", "image/png", data, paste)
    assert names[0] == f"{name}.png"
    expect(page.get_by_role("list", name="Searched by")).to_contain_text("holiday.png")
    assert page.locator(".token img").evaluate("(image) => image.naturalWidth") > 0
    page.get_by_role("searchbox").fill("music")
    page.keyboard.press("Enter")
    how = page.get_by_label("How much files count")
    with page.expect_response("**/search"):
        how.select_option(label="twice as much")
    assert parse_qs(urlsplit(page.url).query) == {"q": ["music"], "files": ["1"], "weight.file": ["2"]}
    assert found(page)[0] == f"{name}.png"
    page.get_by_role("button", name="Search without a file, holiday.png").click()
    expect(page.locator(".token")).to_have_count(0)
    page.go_back()
    expect(page.get_by_role("list", name="Searched by")).to_contain_text("holiday.png")
    page.reload()  # a link has no file in it
    expect(page.get_by_role("alert").first).to_contain_text("Drop it again")


def test_a_file_is_chosen_and_one_that_cannot_be_used_is_said(
    browser: Browser, client: Client, made: Path, name: str
) -> None:
    with watched(browser, client.port, told=("status of 422",)) as page:
        opened(page, client.port)
        sound = next(made.glob(f"emoji/*/{name}.*.flac"))
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Search by a file").click()
        chooser.value.set_files(sound)
        expect(page.locator("#hits h3").first).to_have_text(sound.name)
        page.get_by_role("button", name=f"Search without a file, {sound.name}").click()
        with page.expect_response("**/search"):
            page.locator("#files").set_input_files({"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"})
        expect(page.locator("#problem")).to_contain_text("cannot be searched by")
        expect(page.locator("#hits li")).to_have_count(0)
        large = {"name": "film.mp4", "mimeType": "video/mp4", "buffer": bytes(20 * 2**20 + 1)}
        page.locator("#files").set_input_files(large)
        expect(page.locator("#problem")).to_contain_text("film.mp4 is larger than 20 MB")


def test_a_sound_is_recorded_and_searched_by(page: Page) -> None:
    record = page.get_by_role("button", name="Record from the microphone")
    record.click()
    expect(record).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#box-hint")).to_contain_text("Recording, 1 s")
    with page.expect_response("**/search") as asked:
        record.click()
    assert asked.value.status == 200, asked.value.text()
    expect(page.get_by_role("list", name="Searched by")).to_contain_text("recording.wav")
    assert found(page)
    expect(record).to_have_attribute("aria-pressed", "false")


def test_a_sound_is_played_from_where_it_matches(page: Page) -> None:
    page.locator("#kinds label", has_text="Sounds").click()
    typed(page, "a long tone")
    while page.get_by_role("button", name="Show more", exact=True).is_visible():
        clicked(page, "Show more")
    second = page.locator("#hits .card", has_text="0:30 to 0:40")
    expect(second.locator("h3")).to_have_text("long.flac")
    player = second.locator("audio")
    assert 30 <= played(player) < LONG_S
    assert played(page.locator("#hits .card audio").first) < 30
    second.locator("h3 button").click()
    parts = page.get_by_role("list", name="Parts of the item")
    expect(parts.locator("li[aria-current]")).to_have_text("Play from 0:30 to 0:40")


def test_a_film_is_played_from_where_it_matches(browser: Browser, tiny_clip: Path, tmp_path: Path) -> None:
    encoder = f"encoder: {{kind: clip, model: {tiny_clip}}}"
    (tmp_path / "space.yaml").write_text(
        f"dim: 24\ntext: {{{encoder}}}\nvideo: {{{encoder}, segments: {{seconds: 4, frames: 2}}}}\n"
    )
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/film.webm").write_bytes(film(seconds_of(8, 10), format="webm", codec="libvpx-vp9"))
    with without_ray():
        run(tmp_path / "corpus", tmp_path / "c", tmp_path / "space.yaml")
    with served(tmp_path / "c") as client, watched(browser, client.port) as page:
        opened(page, client.port)
        typed(page, "w1 w2")
        player = page.locator("#hits .card", has_text="0:04 to 0:08").locator("video")
        assert 4 <= played(player) < 8
        assert player.evaluate("(player) => player.videoWidth") == 64
        assert page.evaluate("fetch(document.querySelector('video').poster).then((answer) => answer.status)") == 200


def test_filters_by_kind_and_by_metadata(page: Page, client: Client) -> None:
    typed(page, "an animal")
    with page.expect_response("**/search"):
        page.locator("#kinds label", has_text="Images").click()
    assert all(each.endswith(".png") for each in found(page))
    page.get_by_role("button", name="Filters", exact=True).click()
    page.get_by_label("Only where").select_option("metadata.year")
    page.get_by_label("Comparison").select_option("ge")
    page.get_by_label("Value").fill(str(2000 + EMOJI - 3))
    assert len(clicked(page, "Add filter")) == 3
    expect(page.get_by_role("list", name="Filters that hold")).to_contain_text(f"year is at least {2000 + EMOJI - 3}")
    shared = page.url
    page.get_by_label("Only where").select_option("metadata.group")
    page.get_by_label("Comparison").select_option("eq")
    page.get_by_label("Value").fill("nobody's")
    with page.expect_response("**/search"):
        page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Nothing in run 000001 fits.")
    assert len(clicked(page, "Search without filters")) == 24
    opened(page, client.port, f"?{urlsplit(shared).query}")
    expect(page.locator("#kinds input:checked")).to_have_value("image")
    assert len(found(page)) == 3


def test_more_and_less_like_an_item_and_all_that_is_known_of_it(page: Page, name: str) -> None:
    typed(page, words(name))
    with page.expect_response("**/search"):
        page.get_by_role("button", name=f"More like this: {name}.png").click()
    names = found(page)
    assert f"{name}.png" not in names
    assert f"{name}.txt" in names
    expect(page.locator("#results")).to_be_focused()
    expect(page.locator(".token")).to_contain_text(f"like {name}.png")
    with page.expect_response("**/search"):
        page.get_by_role("button", name=f"Less like this: {name}.txt").click()
    assert f"{name}.txt" not in found(page)
    page.locator("#hits h3 button", has_text=".png").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Embedded in run")
    expect(dialog.locator("img")).to_be_visible()
    assert dialog.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 256
    only = page.get_by_role("button", name="Only where group is")
    group = dialog.locator("dd", has=only).inner_text().removesuffix("Only these")
    only.click()
    expect(page.get_by_role("list", name="Filters that hold")).to_have_text(f"group is {group}")
    expect(page.locator("#chart")).to_be_visible()


def test_the_keyboard_alone_is_enough(page: Page, name: str) -> None:
    keys = page.keyboard
    keys.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    keys.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    keys.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    keys.type(words(name))
    keys.press("Enter")
    expect(page.locator("#status")).to_contain_text("best first")
    for _ in range(4):  # file, microphone, search, kinds
        keys.press("Tab")
    with page.expect_response("**/search"):
        keys.press("ArrowRight")
    expect(page.locator("#kinds input:checked")).to_have_value("image")
    expect(page.locator("#kinds input:checked")).to_be_focused()
    found(page)
    page.locator("#hits h3 button").first.focus()
    keys.press("Enter")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    keys.press("Escape")
    expect(page.locator("#hits h3 button").first).to_be_focused()
    page.locator("#hits .actions button").last.focus()
    keys.press("Tab")
    expect(page.locator("#chart")).to_be_focused()
    said = page.locator("#chart-said")
    expect(said).not_to_be_empty()
    heard = [said.inner_text()]
    for way in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):  # one may lead back to where another came from
        keys.press(way)
        heard.append(said.inner_text())
    assert len(set(heard)) > 1
    with page.expect_response("**/search"):
        keys.press("Enter")
    assert "like" in parse_qs(urlsplit(page.url).query)


def test_the_map_has_what_is_near_and_its_list_the_same(page: Page, client: Client) -> None:
    points = client.json("/map")["points"]
    expect(page.locator("#map-hint")).to_contain_text(f"{len(points)} vectors")
    chart = page.locator("#chart")
    box = chart.bounding_box()
    assert box is not None
    for part in range(1, 40):
        chart.hover(position={"x": box["width"] * part / 40, "y": box["height"] / 2})
        if page.locator("#tip").is_visible():
            break
    expect(page.locator("#tip")).to_be_visible()
    with page.expect_response("**/search"):
        page.mouse.down()
        page.mouse.up()
    assert found(page)
    page.get_by_text("The map as a list").click()
    expect(page.locator("#map-items li")).to_have_count(40)
    page.locator("#map-more").click()
    expect(page.locator("#map-items li")).to_have_count(len(points))
    with page.expect_response("**/search"):
        page.locator("#map-items button").last.press("Enter")


def test_the_run_is_told_with_its_counts_and_recall(page: Page, client: Client) -> None:
    run = page.locator("#run")
    expect(run.get_by_role("heading")).to_have_text("Run 000001")
    recall = client.json("/runs")["runs"][0]["recall"]["text->image"]
    row = run.get_by_role("row", name="text image")
    assert row.locator("td").all_inner_texts()[1:4] == [f"{recall[name]:.2f}" for name in ("r@1", "r@5", "r@10")]
    expect(run).to_contain_text("There is no other run.")


def test_names_and_captions_stay_names_and_captions(page: Page) -> None:
    typed(page, "caption script alert")
    while page.get_by_role("button", name="Show more", exact=True).is_visible():
        clicked(page, "Show more")
    assert EVIL_NAME in found(page)
    assert EVIL_TEXT in page.locator("#hits blockquote").all_inner_texts()
    page.get_by_role("button", name=f"Details of {EVIL_NAME}").click()
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(EVIL_NAME)
    expect(page.get_by_role("dialog")).to_contain_text("<b onclick=alert(2)>")
    page.get_by_role("button", name="Only where group is <b onclick=alert(2)>").click()
    expect(page.get_by_role("list", name="Filters that hold")).to_have_text("group is <b onclick=alert(2)>")
    assert found(page) == [EVIL_NAME]
    with page.expect_response("**/search"):
        page.get_by_role("button", name=f"More like this: {EVIL_NAME}").click()
    expect(page.locator(".token")).to_contain_text(f"like {EVIL_NAME}")
    expect(page.locator("#status")).to_have_text("Nothing in run 000001 fits.")
    page.get_by_role("button", name="Without the filter group is").click()
    assert EVIL_NAME not in found(page)
    dropped(page, EVIL_NAME, "image/png", picture((1, 2, 3)))
    expect(page.locator(".token").last).to_contain_text(EVIL_NAME)
    assert page.locator("img[src='x'], b[onclick], #results script, [onerror], [style*='expression']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 860), PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_page(
    browser: Browser, client: Client, scheme: Any, size: tuple[int, int], name: str
) -> None:
    with watched(browser, client.port, size, color_scheme=scheme) as page:
        opened(page, client.port)
        assert accessibility(page) == []
        typed(page, words(name))
        page.get_by_role("button", name="Filters", exact=True).click()
        page.get_by_text("The map as a list").click()
        page.get_by_role("button", name=f"Less like this: {name}.png").click()
        found(page)
        assert accessibility(page) == []
        assert sideways(page) == []
        page.locator("#hits h3 button").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("Embedded in run")
        assert accessibility(page) == []


def test_a_token_is_asked_for_once(browser: Browser, made: Path) -> None:
    token = "open-sesame-open-sesame"
    with served(made / "c", token=token) as client, watched(browser, client.port, told=("status of 401",)) as page:
        page.goto(f"http://127.0.0.1:{client.port}/")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This service wants a token")
        assert accessibility(page) == []
        dialog.get_by_label("Token").fill("what-is-it-what-is-it")
        dialog.get_by_role("button", name="Go on").click()
        expect(page.locator("#token-problem")).to_contain_text("not the token")
        dialog.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        found(page)
        image = page.locator("#hits .card img").first
        assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
        assert typed(page, "an animal")


def test_another_run_is_taken_up_and_named(browser: Browser, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "c", tmp_path / "c")
    with served(tmp_path / "c") as client, watched(browser, client.port) as page:
        opened(page, client.port)
        typed(page, "an animal")
        embed_builtin(made / "emoji", tmp_path / "c")
        client.service.live.refresh()
        typed(page, "another animal")
        expect(page.locator("#status")).to_contain_text("from run 000002")
        expect(page.get_by_role("link", name="Run 000002")).to_be_visible()
        page.get_by_text("1 other run").click()
        expect(page.get_by_role("row", name="000001")).to_contain_text("done")


def test_another_run_is_picked_and_searched(browser: Browser, made: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(made / "c", tmp_path / "c")
    embed_builtin(made / "emoji", tmp_path / "c")  # without the rows' metadata, and what lies beside the emoji
    with served(tmp_path / "c") as client, watched(browser, client.port, told=("status of 404",)) as page:
        opened(page, client.port)
        page.locator("#kinds label", has_text="Sounds").click()
        typed(page, "a long tone")
        status, note = page.locator("#status"), page.locator("#run-note")
        expect(status).to_contain_text("from run 000002")
        expect(note).to_be_empty()
        assert sideways(page) == []  # the picker tells more of a run than fits
        picker = page.get_by_label("Searched", exact=True)
        assert [each.split(",")[0] for each in picker.locator("option").all_inner_texts()] == [
            "the live run 000002",
            "run 000001",
        ]
        with page.expect_response("**/search"):
            picker.select_option("000001")
        assert "long.flac" in found(page)
        expect(status).to_contain_text("from run 000001")
        expect(note).to_contain_text("Run 000001 is searched as it was, not the live run 000002")
        expect(page.locator("#run").get_by_role("heading")).to_have_text("Run 000001")
        expect(page.locator("#run")).to_contain_text("Recall: how often the right one is among the first")
        expect(page.locator("#map-hint")).to_contain_text(f"{3 * EMOJI + 4} vectors")
        assert parse_qs(urlsplit(page.url).query) == {"q": ["a long tone"], "kind": ["audio"], "run": ["000001"]}
        page.get_by_role("button", name="Filters", exact=True).click()
        page.get_by_label("Only where").select_option("metadata.year")  # which its rows alone have
        assert played(page.locator("#hits .card", has_text="0:30 to 0:40").locator("audio")) >= 30
        page.get_by_role("button", name="Details of long.flac").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("Embedded in run000001")
        page.keyboard.press("Escape")
        assert accessibility(page) == []
        page.reload()
        assert "long.flac" in found(page)
        expect(page.get_by_label("Searched", exact=True)).to_have_value("000001")
        assert "long.flac" not in clicked(page, "Back to the live run")
        expect(status).to_contain_text("from run 000002")
        expect(note).to_be_empty()
        page.goto(f"http://127.0.0.1:{client.port}/?q=frog&run=000009")
        expect(page.locator("#problem")).to_contain_text("No run '000009' is kept; kept are 000001, 000002")
        clicked(page, "Search the live run")
        expect(status).to_contain_text("from run 000002")
        expect(page.locator("#problem")).to_be_empty()


def test_a_collection_in_s3_is_searched_seen_and_heard(
    browser: Browser, made: Path, s3_bucket: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Folder(f"{s3_bucket}/source")
    for path in sorted(made.glob(f"emoji/*/*{name[:1]}*.*")):
        source.write(path.name, path.read_bytes())
    soundfile.write(made / "long.wav", *soundfile.read(made / "long.flac"))
    source.write("long.wav", (made / "long.wav").read_bytes())
    embed_builtin(source.uri, f"{s3_bucket}/c")
    parts: list[tuple[str, int]] = []
    read = items.read_range
    monkeypatch.setattr(
        items, "read_range", lambda uri, start, *rest: parts.append((uri, start)) or read(uri, start, *rest)
    )
    with served(f"{s3_bucket}/c") as client, watched(browser, client.port) as page:
        answers: list[int] = []
        page.on("response", lambda told: answers.append(told.status) if "/media" in told.url else None)
        opened(page, client.port)
        assert f"{name}.txt" in typed(page, words(name))[:3]
        picture = page.locator(f"#hits img[alt='{name}.png']")
        assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 256
        with page.expect_response("**/search"):
            page.locator("#kinds label", has_text="Sounds").click()
        found(page)
        player = page.locator("#hits .card", has_text="0:30 to 0:40").locator("audio")
        assert 30 <= played(player) < LONG_S
    assert answers
    assert set(answers) == {206}
    assert {uri for uri, _ in parts} >= {f"{source.uri}/{name}.png", f"{source.uri}/long.wav"}
    assert any(start > 0 for uri, start in parts if uri.endswith("long.wav"))


def test_a_service_that_went_away_is_said(browser: Browser, made: Path) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(served(made / "c"))
        with watched(browser, client.port, told=("ERR_CONNECTION",)) as page:
            opened(page, client.port)
            stack.close()
            page.get_by_role("searchbox").fill("an animal")
            page.keyboard.press("Enter")
            expect(page.locator("#problem")).to_contain_text("The service does not answer")
            expect(page.get_by_role("button", name="Try again")).to_be_visible()
            expect(page.locator("#hits li")).to_have_count(0)
