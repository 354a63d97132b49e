"""`ssmquant recipes`: the shipped recipes and their options."""

from __future__ import annotations

from rich import box
from rich.table import Table

from ssmquant.cli.console import stdout

__all__ = ["recipes"]


def recipes() -> None:
    """List the shipped recipes and their options."""
    from ssmquant.recipe import load_recipe, shipped_recipes

    table = Table("recipe", "what it does", "options (the first is the default)", box=box.SIMPLE_HEAD)
    for name in shipped_recipes():
        recipe = load_recipe(name)
        options = [
            f"+{key}={'|'.join(option.values)}: {option.help}" for key, option in recipe.options.items()
        ]
        table.add_row(name, f"{recipe.description}\n{recipe.source}", "\n".join(options))
    console = stdout()
    console.print(table)
    console.print("Every recipe also takes +keep=PATTERN, which leaves the sites of that name in float.")
