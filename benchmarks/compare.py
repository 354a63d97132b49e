"""All recipes on one model, beside the systems that they stand against: `ssmquant compare` with everything it knows.

    python benchmarks/compare.py MODEL --text DIR --jobs 2     # DIR: {en,zh,code}.jsonl and lambada_test.jsonl

Writes benchmarks/results/compare-NAME.json and .md; `render.py` makes tables of it, `claims.py` verdicts. The report
folder with the page, and the rows that a broken run goes on from, is build/compare-NAME.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from pages import RESULTS, ROOT

import ssmquant
from ssmquant.errors import RecipeError
from ssmquant.recipe import shipped_recipes

DOMAINS = ("en.jsonl", "zh.jsonl", "code.jsonl")

# What a choice within a recipe pays, and systems in the forms that their papers report.
VARIANTS = (
    "ssmquant-w8a8+ssm_state=int8",
    "quamba2-w8a8+ssm_state=float16",
    "quamba2-w8a8+scales=channel",
    "w8a8-naive+ssm_state=float32",
    "quamba-w8a8+clip=100",
    "quamba-w8a8+clip=99.95",
    "quamba2-w4a8+quantizer=rtn",
    "quamba-w4a8+quantizer=rtn",
    "ssmquant-w4a8+quantizer=rtn",
    "ssmquant-w4a8+group_size=32",
    "squeezellm+sparse=0",
)


def fitting(model: str) -> list[str]:
    """Return the shipped recipes and the variants that the model's family takes."""
    found = []
    for reference in (*shipped_recipes(), *VARIANTS):
        try:
            ssmquant.plan(model, reference)
        except RecipeError:
            continue
        found.append(reference)
    return found


def running_text(passages: Path, place: Path) -> Path:
    """Write LAMBADA's passages as one text, since none is long enough for a window; return the file."""
    lines = passages.read_text(encoding="utf-8").splitlines()
    place.write_text("\n\n".join(json.loads(line)["text"] for line in lines), encoding="utf-8")
    return place


def main(
    model: Annotated[str, typer.Argument(help="Float model: folder.")],
    text: Annotated[Path, typer.Option(help="Folder of the evaluation text.")],
    jobs: Annotated[int, typer.Option(help="Recipes measured at once.")] = 1,
) -> None:
    """Measure every recipe that fits the model."""
    name = Path(model).name
    folder = ROOT / "build" / f"compare-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    lambada = running_text(text / "lambada_test.jsonl", folder.with_name("lambada.txt"))
    data = [str(text / domain) for domain in DOMAINS] + [str(lambada)]
    arguments = ["--recipes", ",".join(fitting(model)), "--data", ",".join(data)]
    command = [
        sys.executable,
        "-m",
        "ssmquant",
        "compare",
        model,
        *arguments,
        "--jobs",
        str(jobs),
        "-o",
        str(folder),
    ]
    subprocess.run(command, check=True)
    for file, ending in (("compare.json", "json"), ("report.md", "md")):
        report = (folder / file).read_text(encoding="utf-8").replace(str(Path(model)), name)
        (RESULTS / f"compare-{name}.{ending}").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
