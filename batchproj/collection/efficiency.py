"""How well a run used its encoders: against what they do alone, and what held them up."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from batchproj.collection.unit import Receipt, Span

Limit = Literal["model", "decode", "read", "write"]

WORTH_SAYING_S = 5.0
"""Of shorter work the first and last unit are most: nothing can be told from it."""


class Efficiency(BaseModel):
    """Of one modality's workers, from a worker's taking up its first unit of a round to the end of its last.

    `segments_per_s` of one worker, `ceiling_per_s` of its encoder alone on segments of the run, with nothing decoded
    beside it (None if the run was too short to take the time), `of_ceiling` the one in parts of the other.
    `model`, `decode` and `waiting` are shares of the workers' time: in the encoder; for decoded input, and on what is
    made of its output; for another unit. What is decoded beside an encoder on the same cores makes the encoder's
    share longer. `limited_by` is the stage that takes most of it.
    """

    model_config = ConfigDict(frozen=True)
    workers: int
    segments_per_s: float
    ceiling_per_s: float | None
    of_ceiling: float | None
    model: float
    decode: float
    waiting: float
    limited_by: Limit


def efficiency(rounds: Iterable[Iterable[Receipt]]) -> dict[str, Efficiency]:
    """By modality, of the units that one attempt at a run has embedded; without those that took no time to speak of.

    What a process does between two rounds is no part of its time: it may have embedded something else.
    """
    by_modality: dict[str, list[tuple[int, Receipt]]] = {}
    for number, receipts in enumerate(rounds):
        for receipt in receipts:
            if receipt.unit.task == "embed" and receipt.unit.modality is not None and receipt.spans:
                by_modality.setdefault(receipt.unit.modality, []).append((number, receipt))
    judged = {modality: _judged(own) for modality, own in by_modality.items()}
    return {modality: found for modality, found in sorted(judged.items()) if found is not None}


def _judged(numbered: Sequence[tuple[int, Receipt]]) -> Efficiency | None:
    """`numbered`: a modality's receipts, each with its round."""
    receipts = [receipt for _, receipt in numbered]
    spans = [span for receipt in receipts for span in receipt.spans]
    in_rounds: dict[tuple[str, int], list[Span]] = {}
    for number, receipt in numbered:
        for span in receipt.spans:
            if span.stage == "embed":
                in_rounds.setdefault((span.where, number), []).append(span)
    whole = 0.0
    for (where, _), own in in_rounds.items():
        end = max(each.ended for each in own)
        begin = min(each.began for each in own)
        measures = [each for each in spans if each.stage == "measure" and each.where == where]
        whole += end - begin - _seconds((each for each in measures if begin <= each.began < end), "measure")
    encoded = sum(receipt.encoded for receipt in receipts)
    if whole < WORTH_SAYING_S or not encoded:
        return None
    model = sum(receipt.model_s for receipt in receipts) / whole
    busy = sum(receipt.busy_s for receipt in receipts) / whole
    waits_for: Limit = "read" if _seconds(spans, "read") >= _seconds(spans, "write") else "write"
    shares: dict[Limit, float] = {"model": model, "decode": busy - model, waits_for: max(0.0, 1 - busy)}
    ceilings = [receipt.ceiling_per_s for receipt in receipts if receipt.ceiling_per_s is not None]
    ceiling = statistics.median(ceilings) if ceilings else None
    return Efficiency(
        workers=max(Counter(number for _, number in in_rounds).values()),
        segments_per_s=round(encoded / whole, 2),
        ceiling_per_s=None if ceiling is None else round(ceiling, 2),
        of_ceiling=None if ceiling is None else round(encoded / whole / ceiling, 3),
        model=round(shares["model"], 3),
        decode=round(shares["decode"], 3),
        waiting=round(shares[waits_for], 3),
        limited_by=max(shares, key=lambda limit: shares[limit]),
    )


def _seconds(spans: Iterable[Span], stage: str) -> float:
    return sum(span.seconds for span in spans if span.stage == stage)


def lines(found: dict[str, Efficiency]) -> list[str]:
    """For people, a modality each."""
    return [_line(modality, each) for modality, each in found.items()]


_LIMITS = {
    "model": "the encoder itself",
    "decode": "decoding",
    "read": "reading",
    "write": "writing",
}


def _line(modality: str, found: Efficiency) -> str:
    workers = "1 worker" if found.workers == 1 else f"{found.workers} workers"
    rate = f"{modality}: {found.segments_per_s * found.workers:,.1f} segments/s from {workers}"
    of = "" if found.of_ceiling is None else f", {found.of_ceiling:.0%} of what the encoder does alone"
    return f"{rate}{of}; {found.model:.0%} of the time in it, limited by {_LIMITS[found.limited_by]}"
