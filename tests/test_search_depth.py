"""How far a search looks into an index: by the rows it has."""

from batchproj.search import PROBES, PROBES_FROM, REFINE_FROM, REFINE_ROWS, _grown


def test_of_more_rows_more_are_looked_at() -> None:
    assert [_grown(REFINE_ROWS, rows, REFINE_FROM) for rows in (0, 250_000, 1_000_000)] == [400, 400, 800]
    assert [_grown(PROBES, rows, PROBES_FROM) for rows in (0, 62_500, 1_000_000)] == [20, 20, 80]
