"""Quality of recipes on one model: quantise with each, compare all with the float model on the same text.

    python benchmarks/recipe_table.py MODEL --recipes fp16,quamba2-w8a8 --data en.jsonl,zh.jsonl -o results/NAME
    python benchmarks/recipe_table.py MODEL --leave-out quamba2-w8a8     # each site in float, one at a time

Writes NAME.json: the keys of `ssmquant eval --json`, and the bytes of each recipe; `render.py` makes tables of it.
"""

from __future__ import annotations

import time
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
    recipes: Annotated[str, typer.Option(help="Recipe references, comma separated.")] = "",
    leave_out: Annotated[
        str, typer.Option(help="A recipe; each of its sites is left in float in turn.")
    ] = "",
    calib: Annotated[str, typer.Option(help="Calibration text.")] = "builtin",
    data: Annotated[str, typer.Option(help="Evaluation text.")] = "builtin",
    samples: int = 16,
    seqlen: int = 1024,
    calib_samples: int = 128,
    calib_seqlen: int = 512,
    device: Annotated[
        str, typer.Option(help="Where models are evaluated; they are quantised on the CPU.")
    ] = "cpu",
    output: Annotated[Path, typer.Option("-o", help="Result file without ending.")] = Path("recipe-table"),
) -> None:
    """Measure recipes on a model."""
    console = Console(stderr=True)
    float_model = ssmquant.load(model)
    float_model.name = Path(model).name
    references = [r for r in recipes.split(",") if r] + (
        left_out(float_model, leave_out) if leave_out else []
    )
    candidates, facts = [], {}
    for reference in references:
        start = time.perf_counter()
        quantised = ssmquant.quantize(
            float_model, reference, calibration=calib, samples=calib_samples, seqlen=calib_seqlen
        )
        quantised.name = reference
        assert quantised.plan is not None
        _, state = quantised.engine().prefill([[0] * 17])
        facts[reference] = {
            "weight_bytes": quantised.plan.weight_bytes(),
            "state_bytes": state.nbytes,
            "quantize_s": round(time.perf_counter() - start, 1),
        }
        candidates.append(quantised.to(device))
        console.print(f"{reference}: {facts[reference]}")
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
        "command": f"python benchmarks/recipe_table.py {Path(model).name}",
        "calibration": f"{calib_samples} calibration sequences of {calib_seqlen} tokens",
        "facts": facts,
    }
    write_json(output.with_suffix(".json"), result)
    console.print(evaluation.table())


if __name__ == "__main__":
    typer.run(main)
