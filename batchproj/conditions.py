"""Conditions on the rows of a table: typed, and pushed down to it. A user's text never becomes SQL.

The metadata are JSON in one column. That a field equals something is told by the texts that the JSON then has in it
(`source.metadata`); any other comparison of a field is made here, and the rows for which it holds are named.
"""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from batchproj.errors import UsageError
from batchproj.schema import vector_schema
from batchproj.source.metadata import KINDS, kind_of, kind_patterns, name_patterns, patterns, typed_patterns

FILTERED = [field.name for field in vector_schema(1) if field.name not in ("vector", "metadata")]
MOST_FILTERS = 20
MOST_VALUES = 1_000
MOST_FORMS = 400
"""Texts that one condition on the metadata may look for."""
MOST_ROWS = 10_000
"""Rows that a condition may name one by one."""
BATCH_ROWS = 1_024
"""Rows whose metadata are looked at, and held, at once."""

_FIELD = "metadata."
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "contains": lambda value, part: part in value,
}

Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Value = StrictStr | StrictBool | StrictInt | Number


def _value(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One complaint in the place of one for each kind that it could have been."""
    try:
        return check(given)
    except ValidationError:
        raise PydanticCustomError(
            "value", f"a text, a finite number, true or false, or a list of at most {MOST_VALUES:,} of these"
        ) from None


class Filter(BaseModel):
    """One condition: `field` is a column, or `metadata.<key>`.

    `in` wants a list; `is_null` takes true, its default, or false; `contains` is for texts and knows upper case from
    lower. `ne` also holds where there is no value, the other comparisons do not. A text is no number: a value that no
    row has the kind of is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    field: str = Field(min_length=1, max_length=300, examples=["modality", "metadata.year"])
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "is_null"]
    value: Annotated[
        Value | Annotated[tuple[Value, ...], Field(max_length=MOST_VALUES)] | None, WrapValidator(_value)
    ] = None

    def __str__(self) -> str:
        return f"filter {self.field} {self.op} {str(self.value)[:60]}"


class Conditions:
    """Conditions on the rows of one version of a table."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._known: set[str] = set()
        self._kinds: dict[tuple[str, str], bool] = {}
        self._rows = functools.lru_cache(maxsize=16)(self._matching)

    def of(self, modality: str | None, where: Sequence[str], filters: Sequence[Filter]) -> Any:
        """All of them as one expression, None without any; raises UsageError for one that fits no column."""
        if len(filters) > MOST_FILTERS:
            raise UsageError(f"{len(filters)} filters; expected at most {MOST_FILTERS}")
        terms = [self._where(each) for each in where] + [self._term(each) for each in filters]
        if modality is not None:
            terms.append(equals("modality", modality))
        return functools.reduce(operator.and_, terms) if terms else None

    # --- column=value ----------------------------------------------------------------------------

    def _where(self, condition: str) -> Any:
        name, equal, value = condition.partition("=")
        if not equal:
            raise UsageError(f"where '{condition}': it is not COLUMN=VALUE; columns are {', '.join(FILTERED)}")
        if name in FILTERED:
            kind = vector_schema(1).field(name).type
            try:
                typed = int(value) if pa.types.is_integer(kind) else float(value) if _is_float(kind) else value
            except ValueError:
                raise UsageError(f"where '{condition}': {name} is a number ({kind})") from None
            if isinstance(typed, float) and not math.isfinite(typed):
                raise UsageError(f"where '{condition}': {name} is a finite number ({kind})")
            asked = Filter(field=name, op="eq", value=typed)
            _check_value(asked)
            return self._column(asked, kind)
        name = name.removeprefix(_FIELD)
        self._check_field(name, f"where '{condition}'")
        return _has_one(_metadata(), patterns(name, value))

    def _check_field(self, name: str, where: str) -> None:
        """UsageError unless a row has the field in its metadata."""
        if name in self._known:
            return
        if not self._table.search().where(_has_one(_metadata(), name_patterns(name))).limit(1).to_list():
            raise UsageError(
                f"{where}: there is no column '{name}', and no row has it in its metadata; "
                f"columns are {', '.join(FILTERED)}"
            )
        self._known.add(name)

    def _check_kind(self, asked: Filter, name: str) -> None:
        """UsageError for a value of a kind that no row has in the field: it would find nothing, and say nothing."""
        for kind in dict.fromkeys(map(kind_of, _values(asked))):
            if not self._has_kind(name, kind):
                there = [f"{other}s" for other in KINDS if self._has_kind(name, other)] or ["lists or nested ones"]
                raise UsageError(f"{asked}: {name} is never a {kind} here; its values are {' and '.join(there)}")

    def _has_kind(self, name: str, kind: str) -> bool:
        if (name, kind) not in self._kinds:
            query = self._table.search().where(_has_one(_metadata(), kind_patterns(name, kind))).limit(1)
            self._kinds[name, kind] = bool(query.to_list())
        return self._kinds[name, kind]

    # --- typed -----------------------------------------------------------------------------------

    def _term(self, asked: Filter) -> Any:
        _check_value(asked)
        if asked.field in FILTERED:
            return self._column(asked, vector_schema(1).field(asked.field).type)
        name = asked.field.removeprefix(_FIELD)
        if name == asked.field or not name:
            raise UsageError(f"{asked}: no column '{name}'; expected metadata.<key>, or one of {', '.join(FILTERED)}")
        self._check_field(name, str(asked))
        return self._field(asked, name)

    def _column(self, asked: Filter, kind: pa.DataType) -> Any:
        from lancedb.expr import col, lit

        column = col(asked.field)
        if asked.op == "is_null":
            return _negated_unless(asked.value is not False, _is_null(column, kind))
        values = [_typed(asked, value, kind) for value in _values(asked)]
        match asked.op:
            case "in":
                return column.isin(values)
            case "ne":
                return ~(column == lit(values[0])) | _is_null(column, kind)
            case "contains":
                if _is_number(kind):
                    raise UsageError(f"{asked}: {asked.field} is a number ({kind}); expected lt, le, gt, ge, eq or in")
                return column.contains(lit(values[0]))
            case "eq":
                return column == lit(values[0])
            case _:
                return _COMPARED[asked.op](column, lit(values[0]))

    def _field(self, asked: Filter, name: str) -> Any:
        if asked.op != "is_null":
            self._check_kind(asked, name)
        match asked.op:
            case "is_null":
                return _negated_unless(asked.value is False, _has_one(_metadata(), name_patterns(name)))
            case "eq" | "in" | "ne":
                forms = [form for value in _values(asked) for form in typed_patterns(name, value)]
                if len(forms) > MOST_FORMS:
                    raise UsageError(f"{asked}: too many values for a field of the metadata; expected at most 50")
                return _negated_unless(asked.op != "ne", _has_one(_metadata(), forms))
            case _:
                return self._rows(asked, name)

    def _matching(self, asked: Filter, name: str) -> Any:
        """The rows whose field compares so: by its values if these are few, or by their ids."""
        from lancedb.expr import col

        compared, value = _COMPARED[asked.op], asked.value
        has_field = _has_one(_metadata(), name_patterns(name))
        found = self._table.search().where(has_field).select(["id", "metadata"]).to_batches(BATCH_ROWS)
        ids: list[str] = []
        values: set[Any] = set()
        for row, metadata in (pair for batch in found for pair in zip(*_columns(batch), strict=True)):
            own = json.loads(metadata).get(name)
            if not _comparable(own, value) or not compared(own, value):
                continue
            if len(ids) <= MOST_ROWS:
                ids.append(row)
            if len(values) <= MOST_FORMS:
                values.add(own)
            if len(ids) > MOST_ROWS and len(values) > MOST_FORMS:
                break
        forms = [form for own in values for form in typed_patterns(name, own)] if len(values) <= MOST_FORMS else []
        if forms and len(forms) <= MOST_FORMS:  # as years and sizes are: the same few on many rows
            return _has_one(_metadata(), forms)
        if len(ids) > MOST_ROWS:
            raise UsageError(f"{asked}: it holds for more than {MOST_ROWS:,} rows; narrow it, or compare with eq")
        return col("id").isin(ids or [""])


def _columns(batch: pa.RecordBatch) -> tuple[list[str], list[str]]:
    return batch["id"].to_pylist(), batch["metadata"].to_pylist()


def _check_value(asked: Filter) -> None:
    """UsageError unless the value is of a kind that the comparison takes."""
    if asked.op == "is_null":
        fits, expected = asked.value is None or isinstance(asked.value, bool), "true or false"
    elif asked.op == "in":
        fits, expected = isinstance(asked.value, tuple) and len(asked.value) > 0, "a list of values"
    elif asked.op == "contains":
        fits, expected = isinstance(asked.value, str), "a text"
    elif asked.op in ("eq", "ne"):
        fits, expected = asked.value is not None and not isinstance(asked.value, tuple), "one value"
    else:
        fits = isinstance(asked.value, str | int | float) and not isinstance(asked.value, bool)
        expected = "a number or a text"
    if not fits:
        raise UsageError(f"{asked}: the value does not fit; expected {expected}")
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in _values(asked)):
        raise UsageError(f"{asked}: the number is out of range; expected 64 bits")


def _values(asked: Filter) -> Sequence[Any]:
    return asked.value if isinstance(asked.value, tuple) else (asked.value,)


def _typed(asked: Filter, value: Any, kind: pa.DataType) -> Any:
    """A value as a column holds it; UsageError if it cannot."""
    if not _is_number(kind):
        if not isinstance(value, str):
            raise UsageError(f"{asked}: {asked.field} is a text; expected a text, not {type(value).__name__}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{asked}: {asked.field} is a number ({kind}); expected a number")
    if _is_float(kind):
        with np.errstate(over="ignore"):
            return float(np.float32(value))  # as the column has rounded it
    return value


def _comparable(own: Any, value: Any) -> bool:
    if isinstance(value, str):
        return isinstance(own, str)
    return isinstance(own, int | float) and not isinstance(own, bool)


def _is_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or _is_float(kind)


def _negated_unless(holds: bool, term: Any) -> Any:
    return term if holds else ~term


def _is_null(column: Any, kind: pa.DataType) -> Any:
    """Lance's expressions have no test of their own; `concat` takes what is null for nothing."""
    from lancedb.expr import func, lit

    written = column if _is_number(kind) else func("octet_length", column)
    return func("concat", written.cast("string"), lit("")) == lit("")


def _metadata() -> Any:
    """The metadata; of rows without any, an empty text, so that what is not in it can be asked as well."""
    from lancedb.expr import col, func, lit

    return func("concat", col("metadata"), lit(""))


def _has_one(column: Any, texts: Sequence[str]) -> Any:
    """Whether one of these texts is in it; halved again and again, for a deep expression overflows the stack."""
    if len(texts) == 1:
        return column.contains(texts[0])
    half = len(texts) // 2
    return _has_one(column, texts[:half]) | _has_one(column, texts[half:])


def both(condition: Any, term: Any) -> Any:
    """Of two conditions; the first may be None."""
    return term if condition is None else condition & term


def equals(column: str, value: str) -> Any:
    from lancedb.expr import col, lit

    return col(column) == lit(str(value))


def none_of(column: str, values: Sequence[str]) -> Any:
    from lancedb.expr import col

    return ~col(column).isin(list(values))
