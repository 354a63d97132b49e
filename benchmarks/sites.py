"""Which site of a recipe costs how much: the recipe with each kind of site left in float, one at a time.

    python benchmarks/sites.py MODEL quamba2-w8a8 --data en.jsonl,zh.jsonl

Writes benchmarks/results/sites-NAME.json with the keys of `ssmquant eval --json`; `render.py` makes a table of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import ssmquant
from ssmquant.cli.files import write_json
from ssmquant.data import evaluation_documents, windows
from ssmquant.eval.environment import environment
from ssmquant.eval.evaluate import evaluate
from ssmquant.model import Model

RESULTS = Path(__file__).resolve().parent / "results"


def left_out(model: Model, recipe: str) -> list[str]:
    """Return references that leave one kind of site of a recipe in float32: every layer's x, every layer's z."""
    rows = ssmquant.plan(model, recipe).rows
    patterns = dict.fromkeys(
        f"layers.*.{row.site.name.split('.', 2)[2]}" if row.site.name.startswith("layers.") else row.site.name
        for row in rows
        if row.rule
    )
    return [recipe, *(f"{recipe}+keep={pattern}" for pattern in patterns)]


def main(
    model: Annotated[str, typer.Argument(help="Float model: folder or Hub id.")],
    recipe: Annotated[str, typer.Argument(help="Each of its sites is left in float in turn.")],
    calib: Annotated[str, typer.Option(help="Calibration text.")] = "builtin",
    data: Annotated[str, typer.Option(help="Evaluation text.")] = "builtin",
    samples: int = 16,
    seqlen: int = 1024,
    calib_samples: int = 128,
    calib_seqlen: int = 512,
    device: Annotated[
        str, typer.Option(help="Where models are evaluated; they are quantised on the CPU.")
    ] = "cpu",
) -> None:
    """Measure what each site of a recipe costs."""
    console = Console(stderr=True)
    float_model = ssmquant.load(model)
    float_model.name = Path(model).name
    candidates = []
    for reference in left_out(float_model, recipe):
        quantised = ssmquant.quantize(
            float_model, reference, calibration=calib, samples=calib_samples, seqlen=calib_seqlen
        )
        quantised.name = reference
        candidates.append(quantised.to(device))
        console.print(reference)
    domains = {
        documents.name: windows(
            documents.texts, float_model.tokenizer, seqlen=seqlen, samples=samples, source=documents.name
        )
        for documents in evaluation_documents(data)
    }
    evaluation = evaluate(
        float_model.to(device),
        candidates,
        domains,
        progress=lambda what, done, total: console.print(f"{what} {done}/{total}"),
    )
    result = evaluation.to_json(environment()) | {
        "command": f"python benchmarks/sites.py {float_model.name} {recipe}",
        "calibration": f"{calib_samples} calibration sequences of {calib_seqlen} tokens",
    }
    write_json(RESULTS / f"sites-{float_model.name}.json", result)
    console.print(evaluation.table())


if __name__ == "__main__":
    typer.run(main)
