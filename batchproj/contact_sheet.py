"""One HTML file that shows searches and what they found: pictures, players and texts, no outside host."""

from __future__ import annotations

import base64
import html
import mimetypes
from dataclasses import dataclass

from batchproj.hits import Hit
from batchproj.objectstore import Folder
from batchproj.schema import Modality


@dataclass(frozen=True)
class Shown:
    """One search: what was asked, with the file it was asked with, if any, and what came back."""

    title: str
    query_uri: str | None
    query_modality: Modality
    wanted_pair: str
    hits: list[Hit]


_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --good: light-dark(#0a7d33, #4ade80); }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
section { border-top: 1px solid var(--line); padding: 1.1rem 0; display: flex; gap: 1.2rem; flex-wrap: wrap; }
.query { width: 11rem; } .hits { display: flex; gap: .7rem; flex-wrap: wrap; flex: 1; }
figure { margin: 0; width: 8.2rem; border: 1px solid var(--line); border-radius: .5rem; padding: .4rem; }
figure.wanted { border: 2px solid var(--good); }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; border-radius: .3rem; }
audio { width: 100%; height: 2rem; margin: 2.6rem 0 .6rem; } blockquote { margin: 2rem .2rem; font-size: 1.05rem; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; } .score { opacity: .65; }
p.note { opacity: .75; }
"""


def contact_sheet(heading: str, note: str, searches: list[Shown]) -> str:
    """The page as HTML; media are embedded, so the file can be mailed."""
    sections = "\n".join(_section(shown) for shown in searches)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(heading)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(heading)}</h1><p class=note>{html.escape(note)}</p>\n{sections}</html>\n"
    )


def _section(shown: Shown) -> str:
    query = _media(shown.query_uri, shown.query_modality, None) if shown.query_uri else ""
    hits = "".join(_figure(hit, wanted=hit.pair == shown.wanted_pair) for hit in shown.hits)
    return (
        f"<section><div class=query><h2>{html.escape(shown.title)}</h2>{query}</div>"
        f"<div class=hits>{hits}</div></section>"
    )


def _figure(hit: Hit, wanted: bool) -> str:
    name = html.escape(hit.uri.rpartition("/")[2])
    kind = " class=wanted" if wanted else ""
    return (
        f"<figure{kind}>{_media(hit.uri, Modality(hit.modality), hit.text)}"
        f"<figcaption>{name}<br><span class=score>{hit.modality} · {hit.score:.3f}</span></figcaption></figure>"
    )


def _media(uri: str, modality: Modality, text: str | None) -> str:
    name = html.escape(uri.rpartition("/")[2], quote=True)
    if modality is Modality.IMAGE:
        return f'<img alt="{name}" src="{_data_url(uri)}">'
    if modality is Modality.AUDIO:
        return f'<audio controls preload=none title="{name}" src="{_data_url(uri)}"></audio>'
    return f"<blockquote>{html.escape(text or '')}</blockquote>"


def _data_url(uri: str) -> str:
    parent, _, name = uri.rpartition("/")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(Folder(parent).read(name)).decode()}"
