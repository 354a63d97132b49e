"""Options that several commands share, so that they are called and explained the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
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
