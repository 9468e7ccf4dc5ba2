"""Token features: each segment has its own number of tokens, kept end to end without padding.

N segments, S tokens of all of them, T tokens of one, D encoder dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenFeatures:
    """`values` (S, D) of any float type; segment i is the `lengths[i]` rows from `starts[i]` on.

    So choosing segments copies no token, and a segment chosen twice is there once.
    """

    values: npt.NDArray[Any]
    starts: Indices
    lengths: Indices

    @staticmethod
    def of(rows: Sequence[npt.NDArray[Any]]) -> TokenFeatures:
        """From one (T, D) array a segment; one segment at least."""
        return TokenFeatures.at(np.concatenate(rows), np.cumsum([0, *map(len, rows)], dtype=np.int64))

    @staticmethod
    def at(values: npt.NDArray[Any], offsets: Indices) -> TokenFeatures:
        """From all tokens (S, D) and where segments begin and end, (N + 1,), as Arrow keeps lists."""
        return TokenFeatures(values, offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice | Sequence[int] | Indices | npt.NDArray[np.bool_]) -> TokenFeatures:
        """Some of the segments, chosen as the rows of an array are."""
        chosen = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(chosen, slice) and chosen.dtype != np.bool_:
            chosen = chosen.astype(np.int64)  # numpy takes [] for floats
        return TokenFeatures(self.values, self.starts[chosen], self.lengths[chosen])

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """The tokens (T, D) of each segment."""
        return (self.values[start : start + length] for start, length in zip(self.starts, self.lengths, strict=True))

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])

    def padded(self, length: int) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Tokens (N, length, D) float32 filled up with zeros, and which are real (N, length)."""
        tokens_NTD = np.zeros((len(self), length, self.dim), np.float32)
        for padded_TD, tokens_TD in zip(tokens_NTD, self, strict=True):
            padded_TD[: len(tokens_TD)] = tokens_TD
        return tokens_NTD, np.arange(length) < self.lengths[:, None]

    def mean(self) -> Array:
        """Mean of each segment's tokens (N, D), added in float32."""
        return self._each(lambda tokens_TD: tokens_TD.mean(0, dtype=np.float32), self.dim)

    def mean_std(self) -> Array:
        """Mean, then standard deviation, of each segment's tokens (N, 2 D), as pooling `mean_std` of kind whisper."""

        def both(tokens_TD: npt.NDArray[Any]) -> Array:
            return np.concatenate([tokens_TD.mean(0, dtype=np.float32), tokens_TD.std(0, dtype=np.float32)])

        return self._each(both, 2 * self.dim)

    def _each(self, pool: Callable[[npt.NDArray[Any]], Array], width: int) -> Array:
        pooled = np.empty((len(self), width), np.float32)
        with np.errstate(invalid="ignore"):  # infinite tokens give NaN, which is found where it matters
            for row, tokens_TD in enumerate(self):
                pooled[row] = pool(tokens_TD)
        return pooled


@dataclass(frozen=True)
class AskedFeatures(TokenFeatures):
    """Tokens, and for each segment those of another modality that ask it: `queries`, as many segments."""

    queries: TokenFeatures

    @staticmethod
    def by(queries: TokenFeatures, tokens: TokenFeatures) -> AskedFeatures:
        """Raises ValueError unless each segment has its queries."""
        if len(queries) != len(tokens):
            raise ValueError(
                f"{len(queries)} segments ask {len(tokens)}: expected as many, each asks the one beside it"
            )
        return AskedFeatures(tokens.values, tokens.starts, tokens.lengths, queries)

    def __getitem__(self, rows: slice | Sequence[int] | Indices | npt.NDArray[np.bool_]) -> AskedFeatures:
        return AskedFeatures.by(self.queries[rows], super().__getitem__(rows))


def bucket(length: int) -> int:
    """The padded length of a segment, of its own length alone: few shapes, a quarter of padding at most.

    Multiples of 8 up to 32, then four steps an octave.
    """
    step = max(8, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step
