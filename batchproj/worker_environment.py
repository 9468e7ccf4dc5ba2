"""What the environment of a worker has to say before it starts: nobody looks at it later."""

from __future__ import annotations

PATIENT_THREADS = ("OMP_WAIT_POLICY", "passive")
"""Threads that wait and spin would take the cores from those who have work."""

KEPT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": f"{512 << 20}"}
"""What a step of a network writes into is asked for and given back each time, some 40 MB for eight pictures. glibc
returns it to the kernel, which clears every page of it for the next step: a sixth of what EfficientNet-lite0 takes in
fp32. So nothing is mapped for itself, and of what is free at the end of the heap half a gigabyte stays. In one arena:
those of threads end at 64 MB. mallopt(3) has the names, `benchmarks/techniques.py kept-memory` what it is worth. (A
high threshold in the place of no mappings is refused by older glibc, which then maps nearly everything.)"""

WORKER_ENVIRONMENT = dict([PATIENT_THREADS], **KEPT_MEMORY)
