"""A real browser on a page of the service, and everything that a page must never do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Playwright, expect

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),  # a microphone that beeps
    "--autoplay-policy=no-user-gesture-required",
)
DESKTOP, PHONE = (1280, 860), (360, 740)

_DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  const init = { bubbles: true, cancelable: true };
  for (const event of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(event, { ...init, dataTransfer: carried }));
  }
}"""
_PASTE = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: carried }));
}"""

_PLAY = """(player) => new Promise((done, failed) => {
  player.ontimeupdate = () => player.currentTime > 0 && done(player.currentTime);
  player.onerror = () => failed(player.error.message);
  player.play();
})"""

expect.set_options(timeout=20_000)


def started(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))


@contextmanager
def watched(
    browser: Browser, port: int, size: tuple[int, int] = DESKTOP, told: tuple[str, ...] = (), **options: Any
) -> Iterator[Page]:
    """A page of a browser of its own, that has to say nothing on its console, ask no other host, break no policy and
    open no dialog; `told` is what the console may tell of."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    wrong: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(each in message.text for each in told):
            wrong.append(f"console: {message.text}")

    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data") and parts.netloc != f"127.0.0.1:{port}":
            wrong.append(f"asked {url}")

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked(request.url))
    page.on("popup", lambda other: wrong.append(f"opened {other.url}"))
    try:
        yield page
        assert wrong == []
    finally:
        context.close()


def opened(page: Page, port: int, query: str = "") -> Page:
    """The page with its first cards."""
    page.goto(f"http://127.0.0.1:{port}/{query}")
    found(page)
    return page


def found(page: Page) -> list[str]:
    """Names of the results, once they are there."""
    expect(page.locator("#results:not([aria-busy])")).to_be_attached()
    expect(page.locator("#hits .card:not(.waiting)").first).to_be_visible()
    return page.locator("#hits .card h3").all_inner_texts()


def typed(page: Page, text: str) -> list[str]:
    page.get_by_role("searchbox", name="What to look for").fill(text)
    with page.expect_response("**/search"):
        page.keyboard.press("Enter")
    return found(page)


def dropped(page: Page, name: str, kind: str, data: bytes, paste: bool = False) -> list[str]:
    with page.expect_response("**/search"):
        page.evaluate(_PASTE if paste else _DROP, [name, kind, base64.b64encode(data).decode()])
    return found(page)


def clicked(page: Page, button: str) -> list[str]:
    """A button that searches."""
    with page.expect_response("**/search"):
        page.get_by_role("button", name=button, exact=True).click()
    return found(page)


def accessibility(page: Page) -> list[str]:
    """What axe-core finds serious or critical."""
    faults = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {json.dumps([node['target'] for node in fault['nodes']])}"
        for fault in faults
        if fault["impact"] in ("serious", "critical")
    ]


def sideways(page: Page) -> list[str]:
    """What is cut off at its right, or would have to be scrolled sideways."""
    wide = "(places) => places.filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.localName)"
    found: list[str] = page.locator("html, aside").evaluate_all(wide)
    return found


def played(player: Locator) -> float:
    """Starts a player, and tells at which second it is as soon as it plays."""
    return float(player.evaluate(_PLAY))
