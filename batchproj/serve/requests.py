"""What a search may say: one JSON document, or a form with the same names and files beside them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import HTTPException
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from batchproj.conditions import MOST_FILTERS, Filter
from batchproj.config import in_words
from batchproj.queries import Example, Search, weight_of
from batchproj.schema import Modality
from batchproj.search import MAX_DEPTH, MAX_K

Weighted = Literal["text", "id", "url", "image", "audio", "video", "file", "not", "like", "unlike"]
Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Id = Annotated[str, Field(min_length=1, max_length=200)]
RUN_CHARS = 20

_OTHER_NAMES = {"like": "id", "unlike": "not"}
"""As Python and the command line call them."""

FILES: dict[str, Modality | None] = {
    "image": Modality.IMAGE,
    "audio": Modality.AUDIO,
    "video": Modality.VIDEO,
    "file": None,
}
"""Parts of a form that are files; what `file` is its content tells."""

_DOCUMENTS = ("filters", "weights", "not", "unlike", "not_id")
"""Fields that are JSON in a form."""

_MOST_FIELDS = 40

LARGE_BYTES = 64 * 2**10
"""A larger document is parsed in a thread: meanwhile other requests go on."""


class SearchRequest(BaseModel):
    """What is searched by, one thing or several; of several the weighted sum is taken.

    `id` is of a hit, or of an item: more like this, itself left out. `not` are texts, and `not_id` ids, that results
    are to be less like; `like` and `unlike`, as Python has them, are `id` and `not`. `hybrid` also looks for the words
    of `text`. `group` gives each item once. `balance` makes scores of different kinds comparable, once they were
    measured. `run` is a run that is kept, in the place of the live one.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "a red apple", "k": 10, "modality": "image"},
                {"text": "at night", "id": "0a1b2c", "weights": {"id": 1.0, "text": 0.5}, "not": ["rain"]},
                {"text": "frog", "filters": [{"field": "metadata.year", "op": "ge", "value": 2020}], "hybrid": True},
            ]
        },
    )
    text: Text | None = None
    id: Id | None = Field(default=None, validation_alias=AliasChoices("id", "like"))
    url: Annotated[str, Field(min_length=1, max_length=2_000)] | None = None
    k: int = Field(default=10, ge=1, le=MAX_K)
    offset: int = Field(default=0, ge=0, le=MAX_DEPTH - 1)
    modality: Modality | None = None
    filters: tuple[Filter, ...] = Field(default=(), max_length=MOST_FILTERS)
    hybrid: bool = False
    group: bool = False
    balance: bool = False
    weights: dict[Weighted, Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]] = {}
    unlike: tuple[Text, ...] = Field(default=(), validation_alias=AliasChoices("not", "unlike"), max_length=10)
    unlike_ids: tuple[Id, ...] = Field(default=(), validation_alias="not_id", max_length=10)
    run: Annotated[str, Field(min_length=1, max_length=RUN_CHARS)] | None = None

    @property
    def given_weights(self) -> dict[str, float]:
        return {_OTHER_NAMES.get(name, str(name)): weight for name, weight in self.weights.items()}

    def search(self, files: list[Example]) -> Search:
        """With the files that came beside it, and the one that its `url` led to."""
        given = self.given_weights
        against = -weight_of(given, "not")
        examples = [
            *([Example(Modality.TEXT, self.text, weight=weight_of(given, "text"))] if self.text else []),
            *([Example(None, id=self.id, name=self.id, weight=weight_of(given, "id"))] if self.id else []),
            *files,
            *(Example(Modality.TEXT, each, weight=against) for each in self.unlike),
            *(Example(None, id=each, name=each, weight=against) for each in self.unlike_ids),
        ]
        return Search(
            tuple(examples),
            self.k,
            self.offset,
            self.modality,
            filters=self.filters,
            group=self.group,
            balance=self.balance,
            hybrid=self.hybrid,
        )


_FIELDS = list(SearchRequest.model_json_schema()["properties"])


def _described() -> dict[str, Any]:
    """What OpenAPI says of a search's body, of both kinds."""
    schema = SearchRequest.model_json_schema()
    defined = schema.pop("$defs")

    def whole(part: Any) -> Any:
        """With what is referred to in its place: references lead nowhere from inside a route."""
        if isinstance(part, dict):
            referred = str(part.get("$ref", "")).rpartition("/")[2]
            return whole(defined[referred]) if referred else {name: whole(each) for name, each in part.items()}
        return [whole(each) for each in part] if isinstance(part, list) else part

    document = whole(schema)
    plain = {
        name: {"type": "string", "description": "as JSON"} if name in _DOCUMENTS else each
        for name, each in document["properties"].items()
    }
    files = {name: {"type": "string", "format": "binary"} for name in FILES}
    form = {"type": "object", "description": "The same fields, and files beside them.", "properties": plain | files}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": document}, "multipart/form-data": {"schema": form}},
        }
    }


BODY = _described()


class HitModel(BaseModel):
    """One found segment; `score` is the cosine, `start` and `end` are seconds, or characters of a text."""

    id: str
    item: str
    uri: str
    modality: Modality
    score: float
    segment: int
    start: float | None
    end: float | None
    pair: str | None
    text: str | None
    why: Literal["vector", "keyword", "both"] = Field(description="which ranking brought it up")


class Found(BaseModel):
    """The hits, best first, all of one run."""

    run: str
    hits: list[HitModel]


async def read_search(request: Request) -> tuple[SearchRequest, list[Example]]:
    """The document and the files of a request; raises HTTPException 415 or 422 in one line."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request)
    if kind != "application/json":
        raise HTTPException(415, "expected application/json, or multipart/form-data with files")
    body = await request.body()
    if len(body) > LARGE_BYTES:
        return await anyio.to_thread.run_sync(_validated, body), []
    return _validated(body), []


async def _read_form(request: Request) -> tuple[SearchRequest, list[Example]]:
    fields: dict[str, Any] = {}
    files: list[tuple[str, str, bytes]] = []
    async with request.form(max_files=len(FILES), max_fields=_MOST_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in FILES:
                    raise HTTPException(422, f"no file '{name[:40]}' is expected, but {', '.join(FILES)}")
                files.append((name, (value.filename or name).rpartition("/")[2], await value.read()))
            elif name in fields:
                raise HTTPException(422, f"'{name[:40]}' stands twice in the form")
            else:
                fields[name] = _document(name, value) if name in _DOCUMENTS else value
    asked = _validated(fields)
    return asked, [
        Example(FILES[name], data=data, name=file, weight=weight_of(asked.given_weights, name))
        for name, file, data in files
    ]


def _document(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise HTTPException(422, f"'{name}' of a form is JSON; this is none") from None


def _validated(document: bytes | dict[str, Any]) -> SearchRequest:
    try:
        if isinstance(document, bytes):
            return SearchRequest.model_validate_json(document)
        return SearchRequest.model_validate(document)
    except ValidationError as error:
        raise HTTPException(422, one_line(error)) from None


def one_line(error: ValidationError) -> str:
    """The first things that are wrong with a document, by their place in it."""
    told = error.errors(include_url=False)
    for name in (each["loc"][0] for each in told if each["type"] == "extra_forbidden"):
        if name in FILES:
            return f"{name}: expected a file, as a part of a form, as curl sends it with -F {name}=@FILE"
        if name in _OTHER_NAMES:
            return f"{name}: it is another word for {_OTHER_NAMES[name]}; give one of the two"
    return in_words(told, _FIELDS)
