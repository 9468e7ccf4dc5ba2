"""Texts -> token ids and character spans, with the tokenizer saved in a model's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchproj.errors import SpaceError
from batchproj.media import TOKENS_OF_A_SPACE, Segment, TextSpec, Tokens
from batchproj.segments import LEAST_TOKENS
from batchproj.text_chunks import BLOCK_CHARS

LENGTH_STEP = 8
UNPADDED = 32
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
_CHARACTERS_PER_TOKEN = 8
_SENTENCE_END = re.compile("[.!?…][\"'\u201d\u2019)\\]]*\\s+|[\u3002\uff01\uff1f]|\n+")
"""Western and CJK full stops, with the closing quotes after them; or the end of a line."""
_PLAIN_WORDS = "the quick brown fox jumps over the lazy dog 0123456789"
_WHITE_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\S+\s*")


class TextTokenizer:
    """A tokenizer bound to a token limit, and to a prompt that is put before each text.

    `prompt_tokens`: how many tokens the prompt is at the start of a row, the mark before it among them.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, prompt: str = "", *, lowercase: bool = False) -> None:
        self._slow = None if tokenizer.is_fast else tokenizer
        self.max_tokens = max_tokens
        self._prompt = prompt
        self._special_tokens = int(tokenizer.num_special_tokens_to_add())
        self._room = max_tokens - self._special_tokens
        self.pad = int(tokenizer.pad_token_id or 0)
        if tokenizer.is_fast:
            serialised = tokenizer.backend_tokenizer.to_str()
            self._whole = type(tokenizer.backend_tokenizer).from_str(serialised)
            self._whole.no_truncation()
            self._whole.no_padding()
            if lowercase:
                self._whole.normalizer = _lowercase_first(self._whole.normalizer)
            self._cut = type(self._whole).from_str(self._whole.to_str())
            self._cut.enable_truncation(max_tokens)
        self.prompt_tokens = self._count_prompt(tokenizer) if prompt else 0

    def ids(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids per text, its prompt before it; a text beyond the limit is cut at it.

        A text of which the tokenizer keeps nothing, where it adds no special tokens either, is one pad token.
        """
        prompted = [self._prompt + text for text in texts]
        if self._slow is not None:
            rows = self._slow(prompted, truncation=True, max_length=self.max_tokens)["input_ids"]
        else:
            rows = [encoding.ids for encoding in self._cut.encode_batch_fast(prompted)]
        return [np.asarray(row or [self.pad], np.int64) for row in rows]

    def ids_of(self, segments: Sequence[Segment]) -> list[Tokens]:
        """The same of texts that may bring theirs (`whole`)."""
        found = iter(self.ids([str(segment.data) for segment in segments if segment.tokens is None]))
        return [next(found) if segment.tokens is None else segment.tokens for segment in segments]

    def whole(self, texts: Sequence[str]) -> list[Tokens | None]:
        """What `ids` gives for each, if that is not cut; None if it is, or may be."""
        found: list[Tokens | None] = [None] * len(texts)
        if self._slow is not None:
            return found
        # both ways to cut look at windows of so many characters, with the outer white space that is let through here
        most = min(self._room * _CHARACTERS_PER_TOKEN, BLOCK_CHARS) - self.max_tokens // TOKENS_OF_A_SPACE
        asked = [number for number, text in enumerate(texts) if text and len(text) <= most]
        # without offsets
        encodings = self._whole.encode_batch_fast([self._prompt + texts[number] for number in asked])
        for number, encoding in zip(asked, encodings, strict=True):
            if 0 < len(encoding.ids) <= self.max_tokens:
                found[number] = np.asarray(encoding.ids, np.int64)
        return found

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character ranges within what the prompt leaves of the limit, cut after a sentence or a word, in order.

        Without `segments` texts are cut by this, not by `text_chunks`, as in collections made before there was that.
        They cover all but blank stretches and never overlap. Linear in the text's length: each
        step tokenizes a window of bounded size.
        """
        prompted = self._prompt + text
        if text and prompted.isascii() and len(prompted) < self._room:
            return [(0, len(text))]  # no tokenizer makes more tokens of it, and one that puts a space before, one more
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
            ends = self._token_ends(text[start:stop])
            if len(ends) <= room:
                whole = stop == len(text) or stop < start + self._room * _CHARACTERS_PER_TOKEN
                return stop if whole else _bound(text, start, stop)
            # tokens of a piece can differ from the same tokens inside the text: then look again
            last = start + max(1, ends[room - 1])
            stop = min(_bound(text, start, last + text[last : last + 1].isspace()), stop - 1)

    @property
    def spec(self) -> TextSpec:
        """How an encoder with this tokenizer has long texts cut."""
        return TextSpec(self.spans, self.text_ends, self.reserved_tokens, self.whole, self.max_tokens)

    @property
    def reserved_tokens(self) -> int:
        """Tokens of a row that are none of the text's: special ones and the prompt's."""
        return self._special_tokens + len(self._token_ends(""))

    def text_ends(self, piece: str) -> list[int]:
        """The character each token of a text ends at, without the special ones and the prompt's."""
        return [end for end in self._token_ends(piece) if end > 0]

    def _token_ends(self, piece: str) -> list[int]:
        """The character each token ends at, the prompt's at 0 or before; special tokens are not counted."""
        before = len(self._prompt)
        if self._slow is None:
            offsets = self._whole.encode(self._prompt + piece, add_special_tokens=False).offsets
            return [end - before for _, end in offsets]
        ends: list[int] = []
        for word in _WORD.finditer(self._prompt + piece):
            ends.extend([word.end() - before] * len(self._slow.tokenize(word.group())))
        return ends

    def _count_prompt(self, tokenizer: Any) -> int:
        """As sentence-transformers counts: the prompt as a text of its own, without the mark at its end."""
        ids = self._whole.encode(self._prompt).ids if self._slow is None else tokenizer(self._prompt)["input_ids"]
        taken = len(ids) - any(last in tokenizer.all_special_ids for last in ids[-1:])
        if taken + LEAST_TOKENS > self.max_tokens:
            raise SpaceError(
                f"the prompt '{self._prompt[:40]}' takes {taken} tokens of the {self.max_tokens} that the model does, "
                f"at least {LEAST_TOKENS} must be left for the text: shorten it, or raise max_tokens"
            )
        return taken


def require_tokenizer(folder: Path) -> None:
    """Raise SpaceError if no file in `folder` is a tokenizer's; loads nothing."""
    if not any((folder / name).is_file() for name in _FILES):
        raise SpaceError(f"no tokenizer in {folder}: tokenizer.json, or what transformers makes one of, was expected")


def _lowercase_first(normalizer: Any) -> Any:
    from tokenizers.normalizers import Lowercase, Sequence

    return Lowercase() if normalizer is None else Sequence([Lowercase(), normalizer])


def load_tokenizer(folder: Path, max_tokens: int, prompt: str = "", *, lowercase: bool = False) -> TextTokenizer:
    """The tokenizer in `folder`; SpaceError if there is none, its package is missing, or the prompt leaves no room."""
    return load_tokenizers(folder, max_tokens, {"": prompt}, lowercase=lowercase)[""]


def load_tokenizers(
    folder: Path, max_tokens: int, prompts: Mapping[str, str], *, lowercase: bool = False
) -> dict[str, TextTokenizer]:
    """The same, read once, for the prompt of each role; SpaceError also where a role's prompt leaves no room."""
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
    if lowercase and not tokenizer.is_fast:
        raise SpaceError(f"the tokenizer in {folder} cannot be made to take lower case: save it as tokenizer.json")
    return {role: TextTokenizer(tokenizer, max_tokens, prompt, lowercase=lowercase) for role, prompt in prompts.items()}


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
