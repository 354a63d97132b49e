"""`ssmquant quantize`: calibrate, quantise and save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmquant.cli.console import print_seconds, size, stdout
from ssmquant.cli.options import Budget, BudgetMegabytes, Force, ModelReference, Recipe, with_budget
from ssmquant.cli.plan import plan_summary
from ssmquant.cli.progress import Progress

__all__ = ["quantize"]


def quantize(
    model: ModelReference,
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder to write.")],
    calib: Annotated[
        str,
        typer.Option(
            metavar="FILE.jsonl|builtin[:en=0.5,zh=0.3,code=0.2]",
            help="Calibration text; weights say how much of each domain or file.",
        ),
    ] = "builtin",
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Calibration sequences.")] = 128,
    seqlen: Annotated[int, typer.Option(metavar="L", min=1, help="Tokens a calibration sequence.")] = 512,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep calibration statistics for later recipes.")
    ] = True,
    budget: Budget = None,
    budget_mb: BudgetMegabytes = None,
    force: Force = False,
) -> None:
    """Quantise a model by a recipe and write it as a folder."""
    import ssmquant
    from ssmquant.files import refuse_existing

    recipe = with_budget(recipe, budget, budget_mb)
    # Everything that can be refused is refused before the weights are read.
    refuse_existing(out, force)
    ssmquant.plan(model, recipe)
    with Progress() as progress:
        loaded = ssmquant.load(model)
        progress.finished("load")
        quantised = ssmquant.quantize(
            loaded,
            recipe,
            calibration=calib,
            samples=samples,
            seqlen=seqlen,
            cache=cache,
            progress=progress,
        )
        progress.finished("quantise")
        quantised.save(out, force=force)
        progress.finished("save")
    console = stdout()
    assert quantised.plan is not None
    console.print(plan_summary(quantised.plan), markup=False, soft_wrap=True)
    console.print(f"written: {out} ({size(folder_bytes(out))})", markup=False, soft_wrap=True)
    print_seconds(console, progress.seconds)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a model folder."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
