"""What the environment of a process that embeds has to say before it starts: nobody looks at it later."""

from __future__ import annotations

PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait and spin would take the cores from those who have work."""

KEPT_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": f"{128 << 20}",
    "MALLOC_TRIM_THRESHOLD_": f"{512 << 20}",
}
"""What a step of a network writes into is asked for and given back each time, some 40 MB for eight pictures. glibc
returns it to the kernel, which clears every page of it for the next step: a sixth of what EfficientNet-lite0 takes in
fp32. So that much is kept, in one arena: those of threads end at 64 MB. Larger pieces still go back at once. mallopt(3)
has the names, `benchmarks/techniques.py kept-memory` what it is worth."""

WORKER_ENVIRONMENT = {**PATIENT_THREADS, **KEPT_MEMORY}
