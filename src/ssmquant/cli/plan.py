"""`ssmquant plan`: the table of what a recipe would do to a model; nothing is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmquant.cli.console import size, stdout
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import Budget, BudgetMegabytes, JsonFile, ModelReference, Recipe, with_budget

if TYPE_CHECKING:
    from ssmquant.planning import Plan

__all__ = ["plan", "plan_summary"]


def plan(
    model: ModelReference,
    recipe: Recipe,
    json: JsonFile = None,
    budget: Budget = None,
    budget_mb: BudgetMegabytes = None,
) -> None:
    """Show what a recipe would do to a model. Reads its config only; nothing is run or written."""
    require_place(json)
    import ssmquant

    found = ssmquant.plan(model, with_budget(recipe, budget, budget_mb))
    console = stdout()
    console.print(found.table())
    console.print(plan_summary(found), markup=False, soft_wrap=True)
    write_json(json, found.to_json())


def plan_summary(plan: Plan) -> str:
    """Return two lines: bytes of the weights at rest before and after, and how many sites have each scheme.

    And a third where something is chosen by measurement.
    """
    before, after = plan.float_bytes(), plan.weight_bytes()
    schemes = ", ".join(f"{count} × {scheme}" for scheme, count in plan.summary().items())
    lines = [
        f"weights at rest: {size(before)} in 16 bits → {size(after)} ({after / before:.0%})",
        f"sites: {schemes}",
    ]
    if plan.choice:
        kinds = " or ".join(scheme.short() for scheme in next(iter(plan.choice.schemes.values())))
        lines.append(
            f"to be chosen by measurement, within {plan.choice.budget}: {kinds} for {len(plan.choice.schemes)} "
            f"weights, here the first; float activations for at most {plan.choice.float_share:.0%} of the work"
        )
    if plan.allocation:
        chosen = plan.allocation
        lines.append(
            f"chosen by measurement, within {chosen.budget}: {chosen.bits:.3f} bits a weight, float activations for "
            f"{chosen.float_share:.0%} of the work, at most {chosen.gap:.2%} above the best choice"
        )
    return "\n".join(lines)
