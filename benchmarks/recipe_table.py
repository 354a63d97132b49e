"""Quality of recipes on one model: quantise with each, compare all with the float model on the same text.

    python benchmarks/recipe_table.py MODEL --recipes fp16,quamba2-w8a8 --data en.jsonl,zh.jsonl -o results/NAME
    python benchmarks/recipe_table.py MODEL --leave-out quamba2-w8a8     # each site in float, one at a time

Writes NAME.json (the keys of `ssmquant eval --json`, with the recipes' bytes) and NAME.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

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


def markdown(result: dict[str, Any]) -> str:
    """Return a result's tables as Markdown."""
    domains = list(result["models"][0]["domains"])
    tokens = ", ".join(
        f"{name} {entry['tokens']:,}" for name, entry in result["models"][0]["domains"].items()
    )
    lines = [
        f"Made by `{result['command']}` with {result['calibration']}, {result['environment']['cpu']}.",
        "KL in nats a token against float32, perplexity relative to float32, both with 95 % bootstrap intervals over",
        f"documents. Tokens: {tokens}.",
        "",
        "| recipe | weights MB | state KB a sequence | "
        + " | ".join(f"KL {d} | ppl {d}" for d in domains)
        + " |",
        "|---|---|---|" + "---|" * (2 * len(domains)),
    ]
    for model in result["models"]:
        facts = result["facts"][model["model"]]
        cells = [f"{facts['weight_bytes'] / 1e6:.1f}", f"{facts['state_bytes'] / 1e3:.0f}"]
        for entry in model["domains"].values():
            cells.append(f"{entry['kl']:.4f} [{entry['kl_ci'][0]:.4f}, {entry['kl_ci'][1]:.4f}]")
            ratio, low, high = (100 * (r - 1) for r in (entry["ppl_ratio"], *entry["ppl_ratio_ci"]))
            cells.append(f"{ratio:+.2f} % [{low:+.2f}, {high:+.2f}]")
        lines.append(f"| {model['model']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Paired differences of KL, first minus second (sign-flip permutation test over documents):",
        "",
        "| first | second | domain | difference | 95 % interval | p |",
        "|---|---|---|---|---|---|",
    ]
    for pair in result["paired"]:
        low, high = pair["ci"]
        shown = f"{pair['kl_diff']:+.5f}" if low > 0 or high < 0 else "no difference shown"
        lines.append(
            f"| {pair['a']} | {pair['b']} | {pair['domain']} | {shown} | [{low:+.5f}, {high:+.5f}] | {pair['p']:.2g} |"
        )
    return "\n".join(lines) + "\n"


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
    output: Annotated[Path, typer.Option("-o", help="Result files without ending.")] = Path("recipe-table"),
) -> None:
    """Measure recipes on a model."""
    console = Console(stderr=True)
    float_model = ssmquant.load(model)
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
        candidates.append(quantised)
        console.print(f"{reference}: {facts[reference]}")
    domains = {
        documents.name: windows(
            documents.texts, float_model.tokenizer, seqlen=seqlen, samples=samples, source=documents.name
        )
        for documents in evaluation_documents(data)
    }
    evaluation = evaluate(
        float_model,
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
    output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    console.print(evaluation.table())


if __name__ == "__main__":
    typer.run(main)
