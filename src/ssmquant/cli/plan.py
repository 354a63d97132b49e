"""`ssmquant plan`: the table of what a recipe would do to a model; nothing is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmquant.cli.console import size, stdout
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import JsonFile, ModelReference, Recipe

if TYPE_CHECKING:
    from ssmquant.planning import Plan

__all__ = ["plan", "plan_summary"]


def plan(model: ModelReference, recipe: Recipe, json: JsonFile = None) -> None:
    """Show what a recipe would do to a model. Reads its config only; nothing is run or written."""
    require_place(json)
    import ssmquant

    found = ssmquant.plan(model, recipe)
    console = stdout()
    console.print(found.table())
    console.print(plan_summary(found), markup=False, soft_wrap=True)
    write_json(json, found.to_json())


def plan_summary(plan: Plan) -> str:
    """Return two lines: bytes of the weights at rest before and after, and how many sites have each scheme."""
    before, after = plan.float_bytes(), plan.weight_bytes()
    schemes = ", ".join(f"{count} × {scheme}" for scheme, count in plan.summary().items())
    return (
        f"weights at rest: {size(before)} in 16 bits → {size(after)} ({after / before:.0%})\nsites: {schemes}"
    )
