"""`ssmquant compare`: recipes side by side, one run, one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ssmquant.cli.console import stdout
from ssmquant.cli.eval import evaluation_windows
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import JsonFile, ModelReference
from ssmquant.cli.progress import Progress
from ssmquant.errors import InputError

if TYPE_CHECKING:
    from ssmquant.report.executors import Executor
    from ssmquant.report.tables import Table

__all__ = ["compare"]


def compare(
    model: ModelReference,
    recipes: Annotated[
        str,
        typer.Option(metavar="A,B,C", help="Recipes, comma separated; each NAME_OR_FILE[+option=value…]."),
    ],
    data: Annotated[
        str, typer.Option(metavar="FILE[,FILE]|builtin[:en,zh,code]", help="Text to evaluate on.")
    ] = "builtin",
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Documents a domain.")] = 16,
    seqlen: Annotated[int, typer.Option(metavar="L", min=2, help="Tokens a document.")] = 1024,
    calib: Annotated[
        str, typer.Option(metavar="FILE.jsonl|builtin[:en=0.5,zh=0.3,code=0.2]", help="Calibration text.")
    ] = "builtin",
    calib_samples: Annotated[int, typer.Option(metavar="N", min=1, help="Calibration sequences.")] = 128,
    calib_seqlen: Annotated[
        int, typer.Option(metavar="L", min=1, help="Tokens a calibration sequence.")
    ] = 512,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Recipes measured at once, a process each.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Measure on a Ray cluster instead; `local` starts one on this machine."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for a page, a Markdown and a JSON file. Finished recipes are kept in it: the same command "
            "goes on where it was broken off.",
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Compare recipes on a model: bits, bytes, relative times, and quality with tests of the differences."""
    require_place(json)
    import ssmquant
    from ssmquant.report.compare import Calibration, require_recipes
    from ssmquant.report.compare import compare as run
    from ssmquant.report.folder import require_report_folder, row_store, write_report
    from ssmquant.report.tables import domain_table, mean_table, summary_table

    # Everything that can be refused is refused before the weights are read.
    references = [reference.strip() for reference in recipes.split(",") if reference.strip()]
    require_recipes(references)
    if out is not None:
        require_report_folder(out)
    for reference in references:
        ssmquant.plan(model, reference)
    executor = _executor(jobs, ray)
    console = stdout()
    with Progress() as progress:
        loaded = ssmquant.load(model)
        progress.finished("load")
        comparison = run(
            loaded,
            references,
            evaluation_windows(loaded, data, samples, seqlen),
            Calibration(calib, calib_samples, calib_seqlen),
            store=None if out is None else row_store(out),
            executor=executor,
            progress=progress,
        )
    for table in (domain_table(comparison), mean_table(comparison), summary_table(comparison)):
        if table.rows:
            console.print(_rich(table))
    write_json(json, comparison.to_json())
    if out is not None:
        write_report(out, comparison)
        console.print(f"written: {out / 'index.html'}", markup=False, soft_wrap=True)


def _executor(jobs: int, ray: str | None) -> Executor:
    from ssmquant.report.cluster import Cluster
    from ssmquant.report.executors import Processes, Serial

    if ray is not None and jobs > 1:
        raise InputError(
            f"asked for {jobs} processes on this machine and for a Ray cluster; choose one of them"
        )
    if ray is not None:
        return Cluster(ray)
    return Processes(jobs) if jobs > 1 else Serial()


def _rich(table: Table) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, title=Text(table.title), caption=Text(table.note))
    for column in table.columns:
        shown.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
