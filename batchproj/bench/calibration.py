"""What this machine computes right now: `python -m batchproj.bench.calibration` prints it as JSON.

A product of matrices in fp32 and, where there are instructions for that, one in bf16, in GFLOP/s: the median of some
windows, 1.4 s of each product, since one window alone says more about that moment than about the minute to come. It is
made before every contender's process: where it moves, something else is using the machine, and the round says nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from pydantic import BaseModel, ConfigDict

WINDOWS = 7
WINDOW_S = 0.2
EDGE = 1_024


class Calibration(BaseModel):
    """GFLOP/s of a product (1024, 1024) x (1024, 1024) with all cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bf16: float | None
    fp32: float

    @property
    def best(self) -> float:
        return max(self.bf16 or 0, self.fp32)


def calibrate() -> Calibration:
    """In a process of its own, so that it starts as fresh as what is measured."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, check=True)
    return Calibration.model_validate_json(done.stdout)


def _rate(dtype: str, cores: int) -> float:
    import torch

    torch.set_num_threads(cores)
    left, right = (torch.randn(EDGE, EDGE).to(getattr(torch, dtype)) for _ in range(2))
    left @ right

    def window() -> float:
        products, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < WINDOW_S:
            left @ right
            products += 1
        return 2 * EDGE**3 * products / took / 1e9

    return statistics.median(window() for _ in range(WINDOWS))


def main() -> None:
    from batchproj.bench.machine import cores
    from batchproj.torch_runtime import is_slow_in_bf16

    bf16 = None if is_slow_in_bf16() else _rate("bfloat16", cores())
    print(json.dumps({"bf16": bf16, "fp32": _rate("float32", cores())}))


if __name__ == "__main__":
    main()
