"""What a search found: rows, best first, to read as a list, to look at in a notebook, or as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from batchproj.errors import UsageError
from batchproj.schema import vector_schema

if TYPE_CHECKING:
    import pandas as pd

Why = Literal["vector", "keyword", "both"]
"""Which of the two rankings of a hybrid search brought a hit up; of any other search it is the vector's."""


@dataclass(frozen=True)
class Hit:
    """One found segment; `score` is the cosine to the query, `metadata` JSON of its row's other columns."""

    id: str
    item: str
    uri: str
    modality: str
    score: float
    segment: int
    start: float | None
    end: float | None
    pair: str | None
    text: str | None
    metadata: str | None = None
    why: Why = "vector"

    def as_dict(self) -> dict[str, Any]:
        """As `search --json` prints it; other programs rely on these keys, so `metadata` and `why` are none."""
        return {name: value for name, value in asdict(self).items() if name not in ("metadata", "why")}


class Hits(list[Hit]):
    """The hits of one search, best first; `run` is the run that they are rows of."""

    def __init__(self, hits: Iterable[Hit], run: str, html: Callable[[Hits], str] | None = None) -> None:
        """`html` draws them, with pictures and players, as a page's part."""
        super().__init__(hits)
        self.run = run
        self._html = html

    def show(self) -> None:
        """Show thumbnails, players and texts in a notebook; UsageError outside one, where IPython is not at hand."""
        try:
            from IPython.display import HTML, display
        except ImportError:
            raise UsageError("show() is for notebooks: pip install ipython, or print the hits") from None

        display(HTML(self._repr_html_()))

    def _repr_html_(self) -> str:
        return self._html(self) if self._html else ""

    def to_arrow(self) -> pa.Table:
        """Columns as `Hit` names them."""
        types = {field.name: field.type for field in vector_schema(1)}
        schema = pa.schema(
            [(field.name, types.get(field.name, pa.string())) for field in fields(Hit) if field.name != "score"]
        ).insert(4, pa.field("score", pa.float32()))
        return pa.Table.from_pylist([asdict(hit) for hit in self], schema=schema)

    def to_pandas(self) -> pd.DataFrame:
        return self.to_arrow().to_pandas()
