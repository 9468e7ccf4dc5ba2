"""A limit on what a run may cost, by the same estimate that `plan` shows; before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchproj.errors import UsageError
from batchproj.estimate import make_plan
from batchproj.recipe import Recipe
from batchproj.schema import Reason
from batchproj.space import ResolvedSpace


@dataclass(frozen=True)
class Budget:
    """`max_cost` and `gpu_hour_price` are of one currency."""

    max_cost: float
    gpu_hour_price: float


def refuse_if_costly(
    source: str,
    collection: str,
    space: ResolvedSpace,
    recipe: Recipe,
    budget: Budget,
    say: Callable[[str], None],
    retry_quarantined: frozenset[Reason] = frozenset(),
) -> None:
    """Raises UsageError with both figures if the estimate is above the budget."""
    plan = make_plan(source, collection, space, recipe, budget.gpu_hour_price, say, retry_quarantined)
    assert plan.cost is not None, "there is a price"
    if plan.cost > budget.max_cost:
        raise UsageError(
            f"the run would cost about {plan.cost:,.2f} ({plan.gpu_hours:,.2f} GPU hours), --max-cost is "
            f"{budget.max_cost:,.2f}; nothing was written; see batchproj plan, or raise --max-cost"
        )
