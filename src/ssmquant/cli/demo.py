"""`ssmquant demo`: the whole main job on the embedded model, in about a minute on two CPU cores."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from ssmquant.cli.console import printable, stdout
from ssmquant.cli.eval import evaluation_windows
from ssmquant.cli.options import Force
from ssmquant.cli.plan import plan_summary
from ssmquant.cli.progress import Progress

if TYPE_CHECKING:
    from ssmquant.model import Model

__all__ = ["demo"]

_PROMPTS = ("The history of the city began", "def read_file(path):\n", "中国的历史")
_NEW_TOKENS = 24
# Less text than `quantize` takes by default, so that the demo ends soon.
_CALIBRATION_SAMPLES, _CALIBRATION_TOKENS = 16, 256


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("ssmquant-demo"),
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", metavar="NAME_OR_FILE[+option=value…]", help="What to do.")
    ] = "quamba2-w8a8",
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Evaluation documents a domain.")] = 8,
    seqlen: Annotated[int, typer.Option(metavar="L", min=2, help="Tokens an evaluation document.")] = 512,
    force: Force = False,
) -> None:
    """Run the whole main job on a small embedded model: plan, quantise, save, load, evaluate, generate."""
    import ssmquant
    from ssmquant.data import builtin_model
    from ssmquant.eval.evaluate import evaluate
    from ssmquant.files import refuse_existing

    refuse_existing(out, force)
    console = stdout()
    start = perf_counter()
    folder = str(builtin_model())
    with Progress() as progress:
        with _step(console, f"plan {recipe} for the embedded model (Mamba-2, 7.7 M parameters)"):
            console.print(indent(plan_summary(ssmquant.plan(folder, recipe)), "  "), markup=False)
        with _step(console, "calibrate and quantise"):
            model = ssmquant.load(folder)
            quantised = ssmquant.quantize(
                model,
                recipe,
                samples=_CALIBRATION_SAMPLES,
                seqlen=_CALIBRATION_TOKENS,
                progress=progress,
            )
        with _step(console, f"save to {out}"):
            quantised.save(out, force=force)
        with _step(console, "load it again"):
            quantised = ssmquant.load(str(out))
        model.name = "the float model"
        with _step(console, f"evaluate {out} against {model.name}"):
            windows = evaluation_windows(model, "builtin", samples, seqlen)
            console.print(evaluate(model, [quantised], windows, progress=progress).table())
        with _step(console, "continue a few texts"):
            _compare_texts(console, model, quantised)
    console.print(f"\ndone in {perf_counter() - start:.0f} s. Try next:")
    place = shlex.quote(str(out))
    for command in (
        f"ssmquant inspect {place}",
        f"ssmquant verify {place}",
        f'ssmquant generate {place} --prompt "Once upon a time"',
        f"ssmquant chat {place}",
        "ssmquant recipes",
    ):
        console.print(f"  {command}", markup=False, soft_wrap=True)


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    console.print(f"• {what}", style="bold", markup=False)
    start = perf_counter()
    yield
    console.print(f"  {perf_counter() - start:.1f} s", style="dim")


def _compare_texts(console: Console, model: Model, quantised: Model) -> None:
    texts = {
        name: each.generate(list(_PROMPTS), max_new_tokens=_NEW_TOKENS)
        for name, each in {"float": model, "quantised": quantised}.items()
    }
    for index, prompt in enumerate(_PROMPTS):
        for name, found in texts.items():
            line = Text(f"{name:>11}: ", style="dim")
            line.append(prompt.strip().replace("\n", "⏎"), style="bold")
            line.append(" ▸ ", style="dim")
            line.append(printable(found[index]).replace("\n", "⏎"), style="default")
            console.print(line, soft_wrap=True)
