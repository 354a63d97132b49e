"""Does a reduced recurrent state drift? KL against float32 by position, over long running text.

    python benchmarks/state_drift.py MODEL --data text.txt -o benchmarks/results/drift-NAME

Compares the recipe's state in float32, float16 and int8, and int8 rounded at other intervals than the recipe's 64
tokens (1: at every token, as a state that is written back at each step).
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import ssmquant
from ssmquant.cli.files import write_json
from ssmquant.data import evaluation_documents
from ssmquant.eval.environment import environment
from ssmquant.eval.metrics import compare

INTERVALS = (1, 4, 16, 256)


def with_interval(recipe: str, interval: int, folder: Path) -> str:
    """Return a recipe file that rounds the int8 state at another interval."""
    scheme = ssmquant.load_recipe(recipe).schemes["int8-state"].model_dump(mode="json", exclude_defaults=True)
    fields = ", ".join(f"{key}: {value}" for key, value in {**scheme, "interval": interval}.items())
    path = folder / f"interval-{interval}.yaml"
    path.write_text(f"extends: {recipe}\nschemes:\n  int8-state: {{{fields}}}\n", encoding="utf-8")
    return f"{path}+ssm_state=int8"


def main(
    model: Annotated[str, typer.Argument(help="Float model: folder or Hub id.")],
    recipe: str = "quamba2-w8a8",
    data: Annotated[str, typer.Option(help="Long text.")] = "builtin",
    calib: Annotated[str, typer.Option(help="Calibration text.")] = "builtin",
    tokens: Annotated[int, typer.Option(help="Length of the sequence.")] = 8192,
    pieces: Annotated[int, typer.Option(help="Stretches that are reported apart.")] = 8,
    calib_samples: int = 96,
    device: Annotated[
        str, typer.Option(help="Where models are evaluated; they are quantised on the CPU.")
    ] = "cpu",
    output: Annotated[Path, typer.Option("-o", help="Result file without ending.")] = Path("drift"),
) -> None:
    """Measure KL by position for several states."""
    console = Console(stderr=True)
    reference = ssmquant.load(model)
    sequences = {}
    for documents in evaluation_documents(data):
        ids = [token for text in documents.texts for token in reference.tokenizer.encode(text)]
        if len(ids) >= tokens:
            sequences[documents.name] = torch.tensor(ids[:tokens])[None]
    with tempfile.TemporaryDirectory() as folder:
        references = {
            f"ssm_state={kind}": f"{recipe}+ssm_state={kind}" for kind in ("float32", "float16", "int8")
        }
        references |= {f"int8, every {n}": with_interval(recipe, n, Path(folder)) for n in INTERVALS}
        quantised = {
            name: ssmquant.quantize(reference, wanted, calibration=calib, samples=calib_samples).to(device)
            for name, wanted in references.items()
        }
    reference.to(device)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in quantised}
    for domain, ids in sequences.items():
        expected = reference.logits(ids)
        for name, candidate in quantised.items():
            logits = candidate.logits(ids)
            bounds = torch.linspace(0, tokens, pieces + 1).long().tolist()
            rows[name][domain] = [
                float(compare(expected[:, a:b], logits[:, a:b], ids[:, a:b]).kl.sum()) / (b - a - 1)
                for a, b in pairwise(bounds)
            ]
            console.print(name, domain, [round(kl, 5) for kl in rows[name][domain]])
    write_json(
        output.with_suffix(".json"),
        {
            "environment": environment(),
            "command": f"python benchmarks/state_drift.py {Path(model).name} --recipe {recipe}",
            "tokens": tokens,
            "kl_by_position": rows,
        },
    )


if __name__ == "__main__":
    typer.run(main)
