"""Features between numpy and Arrow: pooled as fixed-size lists, tokens as lists of them.

N segments, T tokens of one, D encoder dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchproj.schema import Cache
from batchproj.token_features import TokenFeatures

Half = npt.NDArray[np.float16]

Features = Half | TokenFeatures
"""Pooled (N, D), or tokens of N segments, as they are cached."""


def gathered(rows: Sequence[Half], dim: int, cache: Cache) -> Features:
    """Features of single segments, (D,) or (T, D) each, as one; there may be none."""
    if cache == "tokens":
        return TokenFeatures.of([np.empty((0, dim), np.float16), *rows])[1:]
    return np.stack(rows) if len(rows) else np.empty((0, dim), np.float16)


def to_column(features: Features) -> pa.Array:
    """As Arrow keeps them (`schema.feature_schema`)."""
    if not isinstance(features, TokenFeatures):
        return fixed_size_list(features)
    values = np.concatenate([np.empty((0, features.dim), np.float16), *features])
    offsets = np.concatenate([[0], np.cumsum(features.lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), fixed_size_list(values))


def from_column(column: pa.ChunkedArray) -> Features:
    """The features of cached rows; their values are not copied but where rows were left out."""
    array = column.combine_chunks()
    if not pa.types.is_list(array.type):
        return _matrix(array)
    offsets = array.offsets.to_numpy()
    return TokenFeatures.at(_matrix(array.flatten()), offsets - offsets[0])


def fixed_size_list(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """A (n, width) array as an Arrow column, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _matrix(array: pa.FixedSizeListArray) -> Half:
    values: Half = array.flatten().to_numpy().reshape(-1, array.type.list_size)
    return values
