"""Processes of our own that parse what strangers wrote: how little they are told, and how little they may do.

Whoever starts one gives it `environment()`, so that no credentials are in its memory. The process itself calls
`close_doors` once its libraries are loaded, and `limit` for each piece of work: the kernel keeps to it, so that a
library that no longer listens ends as well.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_LAST_WORDS_BYTES = 64 << 10


def environment() -> dict[str, str]:
    """All that such a process knows of our environment."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **_ONE_THREAD}


def close_doors() -> None:
    """From here on nothing is opened, written or started; what a library prints is nobody's to read."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
        resource.setrlimit(what, (0, 0))


def write_little() -> None:
    """For a process that must open files: it writes none longer than what it may have to say at its end."""
    limit(resource.RLIMIT_FSIZE, _LAST_WORDS_BYTES)
    limit(resource.RLIMIT_CORE, 0)


def limit(what: int, value: int) -> None:
    """Set a limit, no higher than the one that the process was started with."""
    _, hard = resource.getrlimit(what)
    allowed = value if hard == resource.RLIM_INFINITY else hard if value == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (allowed, hard))


def cpu_s() -> float:
    """Processor time that the process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def address_space() -> int:
    """Bytes of address space that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
