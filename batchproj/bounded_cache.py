"""What was made not long ago, up to a number of bytes; threads may share it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """Least recently used values go first. A value that is larger than a quarter of all is not kept."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            if (found := self._values.get(key)) is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: V, nbytes: int) -> None:
        with self._lock:
            if key in self._values or nbytes > self._most // 4:
                return
            self._values[key] = (value, nbytes)
            self._held += nbytes
            while self._held > self._most:
                _, (_, freed) = self._values.popitem(last=False)
                self._held -= freed
