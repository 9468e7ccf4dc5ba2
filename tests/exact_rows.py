"""What every encoder promises: a row's bits are its own, alone and in any company."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchproj.encode import Encoder
from batchproj.media import Segment

COMPANIES = ([0], [4], [6], [12], [3, 7], list(range(9, 12)), list(range(2, 19)))


def assert_rows_are_their_own(encoder: Encoder, segments: Sequence[Segment]) -> None:
    """At least 19 segments, of features and of tokens."""
    whole = encoder.encode(segments)
    order = np.random.default_rng(0).permutation(len(segments))
    np.testing.assert_array_equal(encoder.encode([segments[i] for i in order]), whole[order])
    tokens = encoder.encode_tokens(segments)
    for chosen in COMPANIES:
        some = [segments[i] for i in chosen]
        np.testing.assert_array_equal(encoder.encode(some), whole[chosen])
        for row, found in zip(chosen, encoder.encode_tokens(some), strict=True):
            np.testing.assert_array_equal(found, tokens[row])
