"""Text for a terminal: names and contents come from strangers, and a terminal obeys control characters."""

from __future__ import annotations

import json
from typing import Any


def printable(text: str) -> str:
    """`text` in one line, with everything that is not shown as itself (line breaks, escape sequences, characters
    that turn the direction of reading, halves of surrogate pairs) written as Python writes it in a string."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_line(document: Any) -> str:
    """A JSON document in one line whose parsed value is `document`, with the same characters written as JSON does."""
    text = json.dumps(document, ensure_ascii=False)
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def nonzero(named: dict[str, int]) -> str:
    """Those that are not 0, for people; empty if all are."""
    return ", ".join(f"{count:,} {name}" for name, count in named.items() if count)
