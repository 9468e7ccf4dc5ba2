"""Text: offsets, white space, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from batchproj.decode.item import PIECE
from batchproj.decode.limits import Limits
from batchproj.decode.text import decode_text
from batchproj.decoding import TEXTS_AT_ONCE, Decoding, Fetched
from batchproj.errors import ItemFault
from batchproj.media import TextSpec, Tokens
from batchproj.schema import Modality, Reason

WHOLE = TextSpec(lambda text: [(0, len(text))], lambda text: [len(text)])


def by_tens(text: str) -> list[tuple[int, int]]:
    return [(begin, min(begin + 10, len(text))) for begin in range(0, len(text), 10)]


def fault(data: bytes, limits: Limits | None = None) -> ItemFault:
    with pytest.raises(ItemFault) as raised:
        decode_text(data, WHOLE, limits or Limits())
    return raised.value


def test_short_text_is_one_segment_and_line_breaks_stay():
    (segment,) = decode_text("Zwölf\r\nBäume".encode(), WHOLE, Limits())
    assert (segment.data, segment.text) == ("Zwölf\r\nBäume", "Zwölf\r\nBäume")
    assert (segment.start, segment.end) == (0.0, 12.0)


def test_offsets_point_into_the_text_after_white_space_is_stripped():
    text = "\n  a frog  and ten      toads  \t in the pond \n"
    segments = decode_text(text.encode(), TextSpec(by_tens, WHOLE.token_ends), Limits())
    assert [segment.text for segment in segments] == ["a frog", "and ten", "toads", "in the", "pond"]
    assert [text[int(s.start or 0) : int(s.end or 0)] for s in segments] == [s.text for s in segments]


def test_span_of_white_space_alone_gives_no_segment():
    segments = decode_text(b"0123456789" + b" " * 10 + b"end", TextSpec(by_tens, WHOLE.token_ends), Limits())
    assert [(segment.start, segment.text) for segment in segments] == [(0.0, "0123456789"), (20.0, "end")]


def test_byte_order_mark_is_no_part_of_the_text():
    (segment,) = decode_text(b"\xef\xbb\xbffrog", WHOLE, Limits())
    assert (segment.text, segment.start, segment.end) == ("frog", 0.0, 4.0)


@pytest.mark.parametrize(
    ("data", "offset"), [(b"caf\xe9 au lait", 3), (b"\xef\xbb\xbfcaf\xe9!", 6), ("café".encode()[:-1], 3)]
)
def test_invalid_utf8_tells_the_byte_offset(data: bytes, offset: int):
    refused = fault(data)
    assert refused.reason is Reason.INVALID_UTF8
    assert f"offset {offset} " in refused.detail


@pytest.mark.parametrize("data", [b"", b" \n\t ", "\u2003\u00a0".encode(), b"\xef\xbb\xbf"])
def test_blank_text(data: bytes):
    assert fault(data).reason is Reason.BLANK_TEXT


def test_nul_is_no_text():
    refused = fault(b"\xef\xbb\xbfab\0c")
    assert (refused.reason, "offset 5" in refused.detail) == (Reason.CORRUPT, True)


def test_text_above_the_limit_is_not_decoded():
    refused = fault(b"x" * 11, Limits(text_bytes=10))
    assert refused.reason is Reason.TOO_LARGE
    assert "11 bytes" in refused.detail
    assert "10" in refused.detail


def test_tokens_of_many_texts_are_asked_for_together_and_only_of_those_that_are_read():
    asked: list[list[str]] = []

    def whole(texts: Sequence[str]) -> list[Tokens | None]:
        asked.append(list(texts))
        return [np.arange(len(text)) for text in texts]

    spec = TextSpec(WHOLE.spans, WHOLE.token_ends, whole=whole, limit=8)
    decoding = Decoding(Modality.TEXT, spec, frozenset(Modality), Limits(), 4, PIECE)
    texts = [b"\xef\xbb\xbf frog", *(b"toad %d" % number for number in range(TEXTS_AT_ONCE + 5)), b"toad 0", b"\n\xff"]
    items = [Fetched(f"{n}", f"{n}.txt", None, "v", data, data.hex(), f"{n}.txt") for n, data in enumerate(texts)]
    found = list(decoding.ahead(items, pa.table({"content_id": [items[3].content_id]})))
    assert [len(each) for each in asked] == [TEXTS_AT_ONCE - 1, 7]  # but what is cached, and an earlier one's twin
    pieces = [segment for each in found for segment in each.segments]
    assert [len(piece.tokens) for piece in pieces if piece.tokens is not None] == [len(piece.data) for piece in pieces]
    assert found[3].cached is not None
    assert found[-2].twin is found[1].item
    assert str(found[-1].fault) == str(fault(texts[-1]))


def test_a_text_that_the_tokenizer_fails_over_is_the_only_one_at_fault():
    def whole(texts: Sequence[str]) -> list[Tokens | None]:
        if "b" in texts:
            raise RuntimeError("Missing [UNK] token")
        return [np.arange(1)] * len(texts)

    spec = TextSpec(WHOLE.spans, WHOLE.token_ends, whole=whole, limit=8)
    decoding = Decoding(Modality.TEXT, spec, frozenset(Modality), Limits(), 1, PIECE)
    items = [Fetched(each, f"{each}.txt", None, "v", each.encode(), each, f"{each}.txt") for each in "abc"]
    faults = [decoded.fault for decoded in decoding.ahead(items, None)]
    assert [fault and fault.reason for fault in faults] == [None, Reason.DECODER_CRASHED, None]
