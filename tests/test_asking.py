"""What a search is given in Python: of the right types, or refused in a line that names the argument."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import picture

import batchproj
from batchproj.asking import search_of
from batchproj.collection.ledger import Report
from batchproj.conditions import Filter
from batchproj.errors import UsageError
from batchproj.queries import UNLIKE_WEIGHT, Search
from batchproj.schema import Modality


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": 5}, "text is 5; expected a text"),
        ({"text": b"a"}, "text is b'a'; expected a text"),
        ({"k": "a"}, "k is 'a'; expected a whole number"),
        ({"k": 2.0}, r"k is 2\.0; expected a whole number"),
        ({"k": True}, "k is True; expected a whole number"),
        ({"k": None}, "k is empty; expected a whole number"),
        ({"offset": "1"}, "offset is '1'; expected a whole number"),
        ({"modality": 3}, "modality is 3; expected a text"),
        ({"image": 7}, "image is 7; expected the path of a file, or its bytes"),
        ({"audio": ""}, "audio is ''; expected the path of a file, or its bytes"),
        ({"video": "no/such.mp4"}, r"no file at no/such\.mp4"),
        ({"like": 3}, "like is 3; expected a text"),
        ({"unlike": 3}, "unlike is 3; expected a text, or a list of texts"),
        ({"unlike": ["a", 3]}, r"unlike is \['a', 3\]; expected a text, or a list of texts"),
        ({"weights": "x"}, "weights is 'x'; expected numbers by the names"),
        ({"weights": {"text": "x"}}, "weight text='x': expected a number from 0 on, for one of text"),
        ({"weights": {"text": -1}}, "weight text=-1"),
        ({"weights": {"text": math.inf}}, "weight text=inf"),
        ({"weights": {"text": True}}, "weight text=True"),
        ({"weights": {"image": 1}}, "weight image=1: .* for one of text"),
        ({"where": 5}, "where is 5; expected COLUMN=VALUE, or a list of these"),
        ({"where": {"year": 2024}}, "where is {'year': 2024}; expected COLUMN=VALUE, or a list of these"),
        ({"filters": ["x"]}, r"filters is \['x'\]; expected a list of filters"),
        ({"filters": [{"field": "text", "op": "is"}]}, "filter .*: op: expected one of 'eq', .* not 'is'"),
        ({"filters": {"field": "text", "op": "eq", "value": object}}, "filter .*: value: expected a text, a finite"),
        ({"hybrid": "yes"}, "hybrid is 'yes'; expected True or False"),
        ({"group": 1}, "group is 1; expected True or False"),
        ({"space": 4}, "space is 4; expected a text"),
    ],
)
def test_another_type_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}") as refused:
        search_of(**{"text": "w1", **given})
    assert "\n" not in str(refused.value)


def test_what_stands_for_the_same_is_taken() -> None:
    plain = Filter(field="text", op="eq", value="a")
    asked = search_of(
        text="w1",
        like="an-id",
        unlike="rain",
        where="modality=text",
        filters={"field": "text", "op": "eq", "value": "a"},
        weights={"id": 2, "unlike": 0.25},
        k=np.int64(3),
        group=np.True_,
    )
    assert (asked.where, asked.filters, asked.k, asked.group) == (("modality=text",), (plain,), 3, True)
    assert [(each.text or each.id, each.weight) for each in asked.examples] == [
        ("w1", 1),
        ("an-id", 2),
        ("rain", -0.25),
    ]
    assert search_of(text="w1", unlike=None, filters=[plain]) == Search(search_of(text="w1").examples, filters=(plain,))
    assert search_of(text="w1", unlike=["a"]).examples[1].weight == -UNLIKE_WEIGHT


def test_bytes_are_searched_by_as_a_file_is_and_those_of_none_are_refused(embedded: tuple[Path, Report]) -> None:
    opened = batchproj.open(embedded[0])
    data = picture((9, 90, 200))
    (embedded[0].parent / "a.png").write_bytes(data)
    found = opened.search(image=data, k=3)
    assert [hit.id for hit in found] == [hit.id for hit in opened.search(image=embedded[0].parent / "a.png", k=3)]
    for wrong, said in ((b"no picture", "the image given is text, not image"), (data[:60], "cannot be embedded")):
        with pytest.raises(UsageError, match=said):
            opened.search(image=wrong)
    with pytest.raises(UsageError, match="text is 5"):
        opened.search(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="text is 5"):
        opened.embed_query(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the collection is 5; expected its path or URL"):
        batchproj.open(5)  # type: ignore[arg-type]


def test_a_file_keeps_its_kind() -> None:
    assert [each.modality for each in search_of(image=b"a", video=b"b").examples] == [Modality.IMAGE, Modality.VIDEO]
