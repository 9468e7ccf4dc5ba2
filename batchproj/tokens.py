"""Texts -> token ids and character spans, with the tokenizer saved in a model's folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchproj.errors import SpaceError

Tokens = npt.NDArray[np.int64]
"""Token ids of one text, special tokens included, no padding."""

LENGTH_STEP = 8
UNPADDED = 32
_CHARACTERS_PER_TOKEN = 8
_SENTENCE_END = re.compile("[.!?…][\"'\u201d\u2019)\\]]*\\s+|[\u3002\uff01\uff1f]|\n+")
"""Western and CJK full stops, with the closing quotes after them; or the end of a line."""
_PLAIN_WORDS = "the quick brown fox jumps over the lazy dog 0123456789"
_WHITE_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\S+\s*")


class TextTokenizer:
    """A tokenizer bound to a token limit."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._slow = None if tokenizer.is_fast else tokenizer
        self.max_tokens = max_tokens
        self.special_tokens = int(tokenizer.num_special_tokens_to_add())
        self._room = max_tokens - self.special_tokens
        self.pad = int(tokenizer.pad_token_id or 0)
        if tokenizer.is_fast:
            serialised = tokenizer.backend_tokenizer.to_str()
            self._whole = type(tokenizer.backend_tokenizer).from_str(serialised)
            self._whole.no_truncation()
            self._whole.no_padding()
            self._cut = type(self._whole).from_str(self._whole.to_str())
            self._cut.enable_truncation(max_tokens)

    def ids(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids per text; a text beyond the limit is cut at it.

        A text of which the tokenizer keeps nothing, where it adds no special tokens either, is one pad token.
        """
        if self._slow is not None:
            rows = self._slow(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        else:
            rows = [encoding.ids for encoding in self._cut.encode_batch_fast(list(texts))]
        return [np.asarray(row or [self.pad], np.int64) for row in rows]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character ranges within the token limit, cut after a sentence or a word, in order.

        They cover all but blank stretches and never overlap. Linear in the text's length: each
        step tokenizes a window of bounded size.
        """
        spans: list[tuple[int, int]] = []
        start, window = 0, self._room * _CHARACTERS_PER_TOKEN
        while start < len(text):
            end = self._end(text, start, min(len(text), start + window))
            if text[start:end].strip() or not spans:
                spans.append((start, end))
            start = end
        return spans

    def _end(self, text: str, start: int, stop: int) -> int:
        """Where the span from `start` ends: as far as the limit allows, at most `stop`."""
        room = self._room
        while True:
            ends = self.token_ends(text[start:stop])
            if len(ends) <= room:
                whole = stop == len(text) or stop < start + self._room * _CHARACTERS_PER_TOKEN
                return stop if whole else _bound(text, start, stop)
            # tokens of a piece can differ from the same tokens inside the text: then look again
            last = start + max(1, ends[room - 1])
            stop = min(_bound(text, start, last + text[last : last + 1].isspace()), stop - 1)

    def token_ends(self, piece: str) -> list[int]:
        """The character each token ends at; special tokens are not counted."""
        if self._slow is None:
            return [end for _, end in self._whole.encode(piece, add_special_tokens=False).offsets]
        ends: list[int] = []
        for word in _WORD.finditer(piece):
            ends.extend([word.end()] * len(self._slow.tokenize(word.group())))
        return ends


def load_tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    """The tokenizer in `folder`; SpaceError if there is none or its package is missing."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SpaceError(f"no usable tokenizer in {folder}: {reason}") from error
    # of some model types transformers builds its own class, whatever tokenizer.json holds: all texts could be alike
    if not tokenizer(_PLAIN_WORDS, add_special_tokens=False)["input_ids"]:
        raise SpaceError(
            f"no usable tokenizer in {folder}: as {type(tokenizer).__name__}, which transformers makes of it, it keeps "
            "nothing of plain words; tokenizer.json may be of another kind than config.json's model_type"
        )
    return TextTokenizer(tokenizer, max_tokens)


def padded_length(tokens: int) -> int:
    """Short texts get batches of their own length, where padding would be a third of the work.

    Longer ones go up to the next multiple of 8 for few shapes; always with one place left, so that
    every row of such a batch has padding (see `TextEncoder`).
    """
    return tokens if tokens <= UNPADDED else (tokens // LENGTH_STEP + 1) * LENGTH_STEP


def padded(rows: Sequence[Tokens], length: int, pad: int) -> tuple[Tokens, Tokens]:
    """Ids (B, L) filled up with `pad`, and the mask (B, L): 1 for a real token."""
    ids_BL = np.full((len(rows), length), pad, np.int64)
    mask_BL = np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row)] = row
        mask_BL[index, : len(row)] = 1
    return ids_BL, mask_BL


def _bound(text: str, start: int, stop: int) -> int:
    """The last sentence end in the second half of the range, else the last word end, else `stop`."""
    middle = start + (stop - start) // 2
    for pattern in (_SENTENCE_END, _WHITE_SPACE):
        ends = [match.end() for match in pattern.finditer(text, middle, stop)]
        if ends:
            return ends[-1]
    return stop
