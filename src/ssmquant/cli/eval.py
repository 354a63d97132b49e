"""`ssmquant eval`: quality of models against a float reference on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ssmquant.cli.console import stdout
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import JsonFile
from ssmquant.cli.progress import Progress
from ssmquant.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from ssmquant.eval.lambada import LambadaScores
    from ssmquant.model import Model

__all__ = ["evaluate", "evaluation_windows"]


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Folders or Hub ids, float or quantised.")
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Float reference for divergence; without it, perplexity alone."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[,FILE]|builtin[:en,zh,code]",
            help="Text, a domain a file; builtin unless --lambada or --tasks is given.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Documents a domain.")] = 16,
    seqlen: Annotated[int, typer.Option(metavar="L", min=2, help="Tokens a document.")] = 1024,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Documents in a forward pass.")] = 4,
    lambada: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Passages, {"text": …} a line, whose last word is predicted.'),
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Tasks of lm-evaluation-harness.")] = None,
    task_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of further task files for --tasks.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N items of --lambada and --tasks.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure quality: KL divergence, top-1 agreement, perplexity, each with an interval; tasks on request."""
    require_place(json)
    if data is None and lambada is None and tasks is None:
        data = "builtin"
    if data is None and against is not None:
        raise InputError(
            "--against compares on text, and none was asked for; add --data builtin or --data FILE, "
            "or name both models without --against"
        )
    import ssmquant
    from ssmquant.eval.environment import environment
    from ssmquant.eval.evaluate import evaluate as run
    from ssmquant.eval.results import Evaluation, ModelScores

    console = stdout()
    with Progress() as progress:
        candidates = [ssmquant.load(model) for model in models]
        evaluation = Evaluation(None, tuple(ModelScores(model.name, {}) for model in candidates))
        if data is not None:
            reference = None if against is None else ssmquant.load(against)
            windows = evaluation_windows(reference or candidates[0], data, samples, seqlen)
            evaluation = run(reference, candidates, windows, batch=batch, progress=progress)
            console.print(evaluation.table())
            if (paired := evaluation.paired_table()) is not None:
                console.print(paired)
        result = evaluation.to_json(environment())
        if lambada is not None:
            scores = _run_lambada(candidates, lambada, limit, batch, progress)
            console.print(_lambada_table(scores))
            result["lambada"] = _lambada_json(scores)
        if tasks is not None:
            result["tasks"] = _run_tasks(candidates, tasks.split(","), task_path, limit, batch)
            console.print(_tasks_table(result["tasks"]))
    write_json(json, result)


def evaluation_windows(model: Model, spec: str, samples: int, seqlen: int) -> dict[str, Tensor]:
    """Return the tokens of each domain, int64 [samples, seqlen].

    Args:
        model: its tokenizer is used.
        spec: which text, see `ssmquant.data.documents`.
        samples: documents a domain.
        seqlen: tokens a document.

    Raises:
        DataError: there is too little text.
        ModelError: the model has no tokenizer.
    """
    from ssmquant.data import evaluation_documents, windows

    tokenizer = _tokenizer(model)
    return {
        documents.name: windows(
            documents.texts, tokenizer, seqlen=seqlen, samples=samples, source=f"{documents.name} of {spec}"
        )
        for documents in evaluation_documents(spec)
    }


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise ModelError(
            f"text is to be evaluated with {model.name}, which has no tokenizer; copy tokenizer.json and "
            "tokenizer_config.json of the original model into its folder"
        )
    return model.tokenizer


def _run_lambada(
    models: Sequence[Model], file: Path, limit: int | None, batch: int, progress: Progress
) -> list[LambadaScores]:
    from ssmquant.eval.lambada import lambada, load_lambada

    texts = load_lambada(file)[:limit]
    return [lambada(model, _tokenizer(model), texts, batch=batch, progress=progress) for model in models]


def _lambada_json(scores: Sequence[LambadaScores]) -> dict[str, Any]:
    from ssmquant.eval.lambada import compare_lambada

    return {
        "models": [score.to_json() for score in scores],
        "paired": [compare_lambada(a, b).to_json() for a, b in combinations(scores, 2)],
    }


def _lambada_table(scores: Sequence[LambadaScores]) -> Table:
    table = _table("LAMBADA", ("model", "passages", "accuracy", "perplexity a word"))
    for score in scores:
        accuracy, bounds = score.accuracy, score.accuracy.bounds()
        interval = "" if bounds is None else f" [{bounds[0]:.2%}, {bounds[1]:.2%}]"
        table.add_row(
            Text(score.name),
            f"{len(score.nll):,}",
            f"{accuracy.value:.2%}{interval}",
            f"{score.ppl.value:.2f}",
        )
    return table


def _run_tasks(
    models: Sequence[Model], tasks: list[str], folder: Path | None, limit: int | None, batch: int
) -> dict[str, Any]:
    from ssmquant.integrations.lm_eval import run_tasks

    return {
        model.name: run_tasks(model, tasks, include_path=folder, limit=limit, batch_size=batch)
        for model in models
    }


def _tasks_table(found: Mapping[str, Any]) -> Table:
    table = _table("lm-evaluation-harness", ("model", "task", "metric", "value", "standard error"))
    for model, tasks in found.items():
        for task, metrics in tasks["results"].items():
            for key, value in metrics.items():
                metric, _, filtered = key.partition(",")
                if metric.endswith("_stderr") or not isinstance(value, float):
                    continue
                error = metrics.get(f"{metric}_stderr,{filtered}")
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                table.add_row(Text(model), Text(task), Text(metric), f"{value:.4f}", shown)
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title)
    for column in columns:
        table.add_column(column)
    return table
