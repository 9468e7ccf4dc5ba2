"""Where a long text is cut: by tokens, after a sentence or a paragraph where one ends in reach.

A chunk takes as many tokens as fit and then gives back what follows the last bound in reach: the
end of a paragraph if asked for, else of a sentence, else of a word, else of a token. In reach is
the second half of the chunk, and no bound so early that less than a quarter would be new after
the overlap. The next chunk begins at the first sentence that lies whole in the overlap, else at
the first word of it. `at: token` knows no bounds: every chunk is full, and so is every overlap.

A sentence ends at one of `.!?…` before white space, at one of their full-width forms (those of
Chinese and Japanese) anywhere, closing quotes and brackets included, or at a blank line; a
paragraph ends at a blank line. No language is assumed: "Dr." before a name ends a sentence too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

TokenEnds = Callable[[str], Sequence[int]]
"""A text -> the character each of its tokens ends at, special tokens not counted."""
Positions = npt.NDArray[np.int64]

BLOCK_CHARS = 1 << 16
"""Characters tokenized at once: many chunks, so that little is tokenized twice, and yet little memory."""

_BLANK_LINE = r"\n[^\S\n]*\n"
_CLOSING = r"[\"'\u201d\u2019\u00bb)\]\u300d\u300f\uff09]*"
_WORD = re.compile(r"\s+")
_SENTENCE = re.compile(rf"[.!?\u2026]{_CLOSING}(?=\s)|[\u3002\uff01\uff1f]{_CLOSING}|(?={_BLANK_LINE})")
_PARAGRAPH = re.compile(rf"(?={_BLANK_LINE})")
_BOUNDS: dict[str, tuple[re.Pattern[str], ...]] = {
    "token": (),
    "sentence": (_SENTENCE, _WORD),
    "paragraph": (_PARAGRAPH, _SENTENCE, _WORD),
}


def chunks(
    text: str, token_ends: TokenEnds, room: int, overlap: int, at: Literal["sentence", "paragraph", "token"]
) -> Iterator[tuple[int, int]]:
    """Character ranges of `text` in order, each of at most `room` tokens when tokenized by itself.

    Every character but white space is in one of them. Linear in the length of the text, in time;
    memory is that of a block. A single character of more tokens than `room` is a chunk nevertheless.
    """
    stop = len(text.rstrip())
    start, block = 0, _Block(text, 0, stop, token_ends, at)
    while start < stop:
        if not block.holds(start, room):
            block = _Block(text, start, stop, token_ends, at)
        end = block.end(start, room, overlap)
        yield start, end
        start = block.next_start(start, end, overlap)


class _Block:
    """A stretch of the text with its bounds; all positions are those of the whole text."""

    def __init__(self, text: str, start: int, stop: int, token_ends: TokenEnds, at: str) -> None:
        self._text, self._token_ends = text, token_ends
        self._stop = min(stop, start + BLOCK_CHARS)
        self._is_last = self._stop == stop
        ends = np.asarray(token_ends(text[start : self._stop]), np.int64) + start
        self._ends: Positions = np.maximum.accumulate(ends) if len(ends) else ends
        self._bounds = [_starts(pattern, text, start, self._stop) for pattern in _BOUNDS[at]]

    def holds(self, start: int, room: int) -> bool:
        """Whether a chunk from `start` can be told from here: it ends before the block does."""
        return self._is_last or self._first(start) + room < len(self._ends)

    def end(self, start: int, room: int, overlap: int) -> int:
        """Where the chunk from `start` ends."""
        first, count = self._first(start), room
        while True:
            whole = first + count >= len(self._ends)
            end = self._stop if whole else self._bound(first, count, overlap)
            # tokens of a piece can be more than the same tokens inside the text: then fewer are taken
            excess = len(self._token_ends(self._text[start:end].strip())) - room
            count = min(count, len(self._ends) - first)
            if excess <= 0 or count <= 1:
                return end
            count = max(1, count - excess)

    def next_start(self, start: int, end: int, overlap: int) -> int:
        """Where the chunk after [start, end) begins: beyond `start`, at most `overlap` tokens before `end`."""
        if not overlap or end == self._stop:
            return end
        past = int(np.searchsorted(self._ends, end, "right"))
        back = int(self._ends[max(self._first(start), past - overlap - 1)])
        for bounds in self._bounds[-2:]:
            place = int(np.searchsorted(bounds, back))
            if place < len(bounds) and bounds[place] < end:
                return int(bounds[place])
        return back

    def _first(self, start: int) -> int:
        """The first token that ends after `start`."""
        return int(np.searchsorted(self._ends, start, "right"))

    def _bound(self, first: int, count: int, overlap: int) -> int:
        """The end of the last of `count` tokens, or the last bound in reach before it."""
        least = max(1, count // 2, overlap + count // 4)
        latest = int(self._ends[first + count - 1])
        if least <= count:
            for bounds in self._bounds:
                place = int(np.searchsorted(bounds, latest, "right")) - 1
                if place >= 0 and bounds[place] >= self._ends[first + least - 1]:
                    return int(bounds[place])
        return latest


def _starts(pattern: re.Pattern[str], text: str, start: int, stop: int) -> Positions:
    """Where bounds are: after the last character of a sentence or word, before the white space."""
    is_word = pattern is _WORD
    found = (match.start() if is_word else match.end() for match in pattern.finditer(text, start, stop))
    return np.fromiter(found, np.int64)
