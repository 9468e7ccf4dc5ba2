"""The report of a training run: four competitors on the held-out pairs, and what follows in plain words."""

from __future__ import annotations

from typing import Any

from batchproj.comparison import CUTOFFS, FEWEST_GROUPS, Answers, HeldOut, Interval
from batchproj.schema import Modality

NEW, REPLACED, RIDGE, CHANCE = "new", "replaced", "ridge", "chance"
"""The projector just trained, the one it replaces, the baseline of a statistician, and ranking at random."""

_NAMES = {REPLACED: "the projector it replaces", RIDGE: "ridge regression", CHANCE: "chance"}


def compared(
    modality: Modality, held_out: HeldOut, answers: dict[str, Answers], reverse: bool = False
) -> dict[str, Any]:
    """The part of the card on who answers how; `answers` by competitor, NEW and CHANCE among them.

    With `reverse` the items of `held_out` are texts, and its captions are items of the modality.
    """
    rivals = [name for name in answers if name != NEW]
    gains = {rival: held_out.gain(answers[NEW], answers[rival]) for rival in rivals}
    ways = (f"text->{modality}", f"{modality}->text")[:: -1 if reverse else 1]
    figures = {name: _figures(ways, held_out, each) for name, each in answers.items()}
    recall = {name: each["mean_recall"]["value"] for name, each in figures.items()}
    return {
        "competitors": figures,
        "gain_over": {rival: rounded(gain) for rival, gain in gains.items()},
        "verdict": [
            told(_NAMES[rival], gain, "mean recall", f"{held_out.groups:,} held-out pairs")
            for rival, gain in gains.items()
        ],
        "shortcomings": _shortcomings(held_out, gains, recall),
    }


def nothing_held_out() -> dict[str, Any]:
    """The same where the split has held out no pair."""
    said = "no pair was held out, so nothing is known of it"
    return {"competitors": {}, "gain_over": {}, "verdict": [said], "shortcomings": [said]}


def _figures(ways: tuple[str, ...], held_out: HeldOut, answers: Answers) -> dict[str, Any]:
    recalls = held_out.recalls(answers)
    figures: dict[str, Any] = {}
    for number, (way, hits) in enumerate(zip(ways, (answers.to_item, answers.to_text), strict=True)):
        own = recalls[3 * number : 3 * number + 3]
        figures[way] = {
            "n": len(hits),
            **{f"r@{k}": rounded(recall) for k, recall in zip(CUTOFFS, own, strict=True)},
            "median_rank": round(answers.median_ranks[number], 1),
        }
    gap = None if answers.modality_gap is None else round(answers.modality_gap, 4)
    return {**figures, "mean_recall": rounded(recalls[-1]), "modality_gap": gap}


def rounded(figure: Interval) -> dict[str, float]:
    """A figure as cards keep it."""
    return {name: round(getattr(figure, name), 4) for name in ("value", "low", "high")}


def told(rival: str, gain: Interval, what: str, by: str) -> str:
    """In plain words whether the new one is better in `what` than a rival, as far as `by` tells."""
    difference = f"{what} {gain.value:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f})"
    if gain.low > 0:
        return f"better than {rival}: {difference}"
    if gain.high < 0:
        return f"worse than {rival}: {difference}"
    return f"not told apart from {rival} by {by}: {difference}"


def _shortcomings(held_out: HeldOut, gains: dict[str, Interval], recall: dict[str, float]) -> list[str]:
    """Why the new projector should not replace what is live; empty if it may.

    It has to find more than ridge regression does, beyond doubt more than chance, and not beyond
    doubt less than the projector it replaces.
    """
    if not held_out.tells:
        return [f"{held_out.groups} held-out pairs tell nothing, at least {FEWEST_GROUPS} are needed"]
    found = []
    if gains[CHANCE].low <= 0:
        found.append((f"not better than {_NAMES[CHANCE]}", CHANCE))
    if RIDGE in gains and gains[RIDGE].value <= 0:
        found.append((f"not better than {_NAMES[RIDGE]}", RIDGE))
    if REPLACED in gains and gains[REPLACED].high < 0:
        found.append((f"worse than {_NAMES[REPLACED]}", REPLACED))
    return [f"{said}, mean recall {recall[NEW]:.3f} against {recall[rival]:.3f}" for said, rival in found]
