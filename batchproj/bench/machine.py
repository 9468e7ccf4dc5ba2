"""This machine: its cores, and the seconds they have worked."""

from __future__ import annotations

import os
from pathlib import Path

_STAT = Path("/proc/stat")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started, None where nothing tells.

    Of the whole machine, since Ray's processes are nobody's children: whatever else runs is in it as well.
    """
    if not _STAT.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)), in ticks
    ticks = [int(value) for value in _STAT.read_text().splitlines()[0].split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
