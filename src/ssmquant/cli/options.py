"""Options that several commands share, so that they are called and explained the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmquant.errors import InputError

__all__ = [
    "Budget",
    "BudgetMegabytes",
    "Force",
    "JsonFile",
    "MaxNewTokens",
    "ModelReference",
    "QuantisedFolder",
    "Recipe",
    "RepetitionPenalty",
    "Seed",
    "Stop",
    "TopK",
    "TopP",
    "with_budget",
]

ModelReference = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, or id on the Hugging Face Hub, of a model.")
]
QuantisedFolder = Annotated[
    str, typer.Argument(metavar="OUT", help="Folder that `ssmquant quantize` wrote; also any model.")
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME_OR_FILE[+option=value…]",
        help="Shipped recipe (`ssmquant recipes` lists them) or a YAML file, with options.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="4.5bits",
        help="For recipes that choose under a budget (w4ax): most bits a chosen weight, as +budget=4.5bits.",
    ),
]
BudgetMegabytes = Annotated[
    float | None,
    typer.Option(metavar="MB", help="The same in megabytes of all weights at rest, as +budget=120mb."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output folder when it exists.")]

MaxNewTokens = Annotated[int, typer.Option(metavar="N", help="At most so many tokens a prompt.")]
TopK = Annotated[int, typer.Option(metavar="K", help="Draw from the K likeliest tokens only; 0: from all.")]
TopP = Annotated[
    float, typer.Option(metavar="P", help="Draw from the likeliest tokens that make up P; 1: all.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="X", help="Above 1 discourages tokens that occurred before.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the random draws.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="End before this text. May be given several times.", show_default=False
    ),
]


def with_budget(recipe: str, budget: str | None, megabytes: float | None) -> str:
    """Return a recipe's reference with the budget that the command line gives besides.

    Raises:
        InputError: it is given in bits and in megabytes.
    """
    if budget is not None and megabytes is not None:
        raise InputError(
            f"a budget of {budget} and one of {megabytes:g} megabytes were given; choose --budget or --budget-mb"
        )
    if megabytes is not None:
        budget = f"{megabytes}mb"
    return recipe if budget is None else f"{recipe}+budget={budget}"
