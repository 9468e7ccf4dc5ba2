"""A decoder process with holes in its decoder, as a library may have: bytes that end in a word do what it says."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from batchproj.decode import child
from batchproj.errors import ItemFault
from batchproj.schema import Reason

GIB = 1 << 30


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def spin() -> None:
    while True:
        pass


def hang() -> None:
    time.sleep(3600)


def eat() -> None:
    np.ones(4 * GIB, np.uint8)


def stumble() -> None:
    {}["nothing"]


def read_in_a_shell() -> None:
    os.posix_spawn("/bin/sh", ["sh", "-c", "read line </etc/passwd"], {})
    if os.wait()[1]:
        raise PermissionError


def shrink() -> None:
    """Take away the pages that the other side is about to read, which would be its end."""
    for file in range(3, 99):
        with suppress(OSError):
            if os.fstat(file).st_size:
                os.ftruncate(file, 0)
                return
    raise PermissionError


def break_out() -> None:
    """Try everything that a decoder has no business with, and tell what went through."""
    doors: dict[str, Callable[[], Any]] = {
        "open": lambda: open("/etc/passwd"),  # noqa: PTH123, SIM115
        "environ": lambda: open("/proc/self/environ"),  # noqa: PTH123, SIM115
        "write": lambda: open("/tmp/of-a-decoder", "w"),  # noqa: PTH123, SIM115
        "socket": socket.socket,
        "run": read_in_a_shell,
        "shrink": shrink,
    }
    went = []
    for name, door in doors.items():
        try:
            door()
        except OSError:
            continue
        went.append(name)
    secrets = [name for name in os.environ if name.startswith(("AWS_", "HF_"))]
    raise ItemFault(Reason.CORRUPT, f"open: {went}, secrets: {secrets}")


POISONS = {each.__name__: each for each in (crash, leave, be_killed, spin, hang, eat, stumble, break_out)}


def poisoned(decode: Callable[..., Any]) -> Callable[..., Any]:
    def decode_or_do(data: bytes, *rest: Any) -> Any:
        _, _, word = data[-32:].rpartition(b"!")
        POISONS.get(word.decode(errors="replace"), lambda: None)()
        yield from decode(data, *rest)

    return decode_or_do


if __name__ == "__main__":
    child.decode_pieces = poisoned(child.decode_pieces)
    child.main(*sys.argv[1:])
