"""What rounds say: ratios within a round, and of these the median and the range.

Times of different rounds are never compared: a machine that is slower for a minute is so for all of a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from batchproj.bench.calibration import Calibration
from batchproj.bench.contenders import CEILING, DEFAULT
from batchproj.bench.rounds import Round, Run


class Ratio(BaseModel):
    """Median of the rounds, least and greatest."""

    median: float
    low: float
    high: float


class Figures(BaseModel):
    """One contender on one workload, or why there is none (`missing`).

    `speed`, `speed_whole` and `over_default` are how many times as fast as the ceiling, as the ceiling with start-up
    and end included, and as the usual loop: 1 is equal, more is faster. `busy` is how many times the ceiling's
    processor seconds it took. Shares are of the steady time, side by side where threads are. `of_peak` is the share
    of the machine's measured rate at which the arithmetic that was needed was done.
    `void` figures are from void rounds alone, as there was no other.
    """

    missing: str | None = None
    void: bool = False
    cosine: float | None = None
    rounds: int = 0
    speed: Ratio | None = None
    speed_whole: Ratio | None = None
    over_default: Ratio | None = None
    busy: Ratio | None = None
    start_s: float | None = None
    busy_s: float | None = None
    items_per_s: float | None = None
    per_million: float | None = None
    padding: float | None = None
    decode: float | None = None
    model: float | None = None
    write: float | None = None
    of_peak: float | None = None


class Needs(BaseModel):
    """What a workload is: items, FLOPs of all of them if they are known, the price of an hour of the machine."""

    items: int
    flops: int | None = None
    price: float | None = None


def figures(rounds: list[Round], name: str, needs: Needs) -> Figures:
    """Of one contender; of void rounds only if there are no others."""
    valid = [each for each in rounds if not each.void]
    used = valid or rounds
    runs = [each.runs[name] for each in used]
    steady = [run.steady_s for run in runs]
    per_s = statistics.median(needs.items / seconds for seconds in steady)
    return Figures(
        void=not valid,
        rounds=len(valid),
        speed=_ratio(used, CEILING, name, lambda run: run.steady_s),
        speed_whole=_ratio(used, CEILING, name, lambda run: run.total_s),
        over_default=_ratio(used, DEFAULT, name, lambda run: run.steady_s),
        busy=_ratio(used, name, CEILING, lambda run: run.busy_s),
        start_s=statistics.median(run.start_s for run in runs),
        busy_s=_median([run.busy_s for run in runs]),
        items_per_s=per_s,
        per_million=None if needs.price is None else needs.price / 3_600 / per_s * 1e6,
        padding=_median([_padding(run) for run in runs]),
        decode=_share(runs, lambda run: run.outcome.decode_s),
        model=_share(runs, lambda run: run.outcome.model_s),
        write=_share(runs, lambda run: run.outcome.write_s),
        of_peak=_of_peak(used, name, needs.flops),
    )


def _ratio(rounds: list[Round], over: str, under: str, value: Callable[[Run], float | None]) -> Ratio | None:
    """Within each round, what `over` took divided by what `under` did; None where one of them is not there."""
    pairs = [(value(each.runs[over]), value(each.runs[under])) for each in rounds if {over, under} <= each.runs.keys()]
    ratios = [above / below for above, below in pairs if above is not None and below]
    return Ratio(median=statistics.median(ratios), low=min(ratios), high=max(ratios)) if ratios else None


def _padding(run: Run) -> float | None:
    """Tokens that went through the model for each of the input; 1 is none too many."""
    real, padded = run.outcome.real_tokens, run.outcome.padded_tokens
    return padded / real if real and padded is not None else None


def _share(runs: list[Run], seconds: Callable[[Run], float | None]) -> float | None:
    found = [(seconds(run), run.steady_s) for run in runs]
    return _median([None if part is None else part / whole for part, whole in found])


def _of_peak(rounds: list[Round], name: str, flops: int | None) -> float | None:
    if flops is None:
        return None
    rates = [flops / each.runs[name].steady_s / (each.calibrations[name].best * 1e9) for each in rounds]
    return statistics.median(rates)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def raw(rounds: list[Round]) -> list[dict[str, Any]]:
    """Every process of every round as it was measured, for the JSON file."""
    return [
        {
            "order": each.order,
            "void": each.void,
            "calibrations": {name: _rates(one) for name, one in each.calibrations.items()},
            "runs": {name: _measured(run) for name, run in each.runs.items()},
        }
        for each in rounds
    ]


def _rates(calibration: Calibration) -> dict[str, float]:
    return {f"{name}_gflops": round(rate, 1) for name, rate in calibration.model_dump().items() if rate is not None}


def _measured(run: Run) -> dict[str, Any]:
    told = {"total_s": run.total_s, "start_s": run.start_s, "steady_s": run.steady_s, "busy_s": run.busy_s}
    parts = run.outcome.model_dump(exclude={"ready", "done"}, exclude_none=True)
    return {name: None if value is None else round(value, 3) for name, value in {**told, **parts}.items()}
