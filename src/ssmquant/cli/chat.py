"""`ssmquant chat`: write a text in turns with a model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ssmquant.cli.console import stderr, stdout
from ssmquant.cli.generate import continue_texts, piece_printer
from ssmquant.cli.options import (
    MaxNewTokens,
    QuantisedFolder,
    RepetitionPenalty,
    Seed,
    Stop,
    TopK,
    TopP,
)

__all__ = ["chat"]

_INTRODUCTION = """\
{model} continues text; base models do not answer questions. What you type is appended to the text so far
and continued. An empty line starts a new text, Ctrl-D ends."""


def chat(
    model: QuantisedFolder,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 takes the likeliest token; 1 draws from the distribution.")
    ] = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    repetition_penalty: RepetitionPenalty = 1.1,
    seed: Seed = 0,
    stop: Stop = None,
) -> None:
    """Write a text in turns with the model. Base models continue, they do not answer."""
    import ssmquant
    from ssmquant.runtime.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    loaded = ssmquant.load(model)
    console = stdout()
    stderr().print(_INTRODUCTION.format(model=model), markup=False, style="dim", soft_wrap=True)
    history = ""
    while (line := _read_line(console)) is not None:
        if not line:
            history = ""
            continue
        # A line break ends what the user types, but a word may go on after it: none is put into the text.
        history += line
        (result,) = continue_texts(
            loaded, [history], max_new_tokens, sampling, stop or (), piece_printer(console)
        )
        history += result.text
        console.print()


def _read_line(console: Console) -> str | None:
    """Return what the user typed, None at the end of input."""
    try:
        return console.input("[bold]> [/bold]")
    except EOFError:
        console.print()
        return None
