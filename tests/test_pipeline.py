"""What workers hold on a cluster; the runs themselves are in test_embed.py and test_chaos.py."""

from __future__ import annotations

import pytest

from batchproj.pipeline import reserved_cpus

CPU_HEADROOM = 0.5


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([2], 1, 1.5),
        ([2], 3, 0.5),
        ([2, 2], 2, 0.75),  # both on the one that is left
        ([4, 4, 4], 3, 1.75),  # not a third of what is left: no two nodes hold three of that
        ([4, 4, 4, 4], 5, 1.75),
        ([1, 64, 64], 2, 31.75),
        ([1], 4, 0.12),
    ],
)
def test_workers_fit_when_the_largest_node_is_lost(nodes: list[float], workers: int, share: float) -> None:
    assert reserved_cpus(nodes, workers, CPU_HEADROOM) == share
    left = sorted(nodes)[:-1] or nodes
    assert sum(int((cpus - CPU_HEADROOM) / share + 1e-9) for cpus in left) >= workers
