"""`ssmquant generate`: continue prompts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ssmquant.cli.console import printable, stdout
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import (
    JsonFile,
    MaxNewTokens,
    QuantisedFolder,
    RepetitionPenalty,
    Seed,
    Stop,
    TopK,
    TopP,
)
from ssmquant.errors import InputError, ModelError

if TYPE_CHECKING:
    from ssmquant.model import Model
    from ssmquant.runtime.generate import Generation, Stream
    from ssmquant.runtime.sampling import Sampling

__all__ = ["continue_texts", "generate", "piece_printer"]


def generate(
    model: QuantisedFolder,
    prompt: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT", help='Text to continue; "-" reads it from stdin. May be given several times.'
        ),
    ],
    max_new_tokens: MaxNewTokens = 64,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 takes the likeliest token; 1 draws from the distribution.")
    ] = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    stream: Annotated[bool, typer.Option(help="Show a single text while it is written.")] = True,
    json: JsonFile = None,
) -> None:
    """Continue text. Each prompt gets the text that it would get alone."""
    require_place(json)
    prompts = _read_prompts(prompt)
    import ssmquant
    from ssmquant.runtime.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    loaded = ssmquant.load(model)
    console = stdout()
    streams = stream and len(prompts) == 1
    if streams:
        _print_prompt(console, prompts[0])
    results = continue_texts(
        loaded, prompts, max_new_tokens, sampling, stop or (), piece_printer(console) if streams else None
    )
    for text, result in zip(prompts, results, strict=True):
        if not streams:
            _print_prompt(console, text)
            console.out(printable(result.text), end="", highlight=False)
        console.print()
    write_json(json, {"model": model, "generations": _rows(prompts, results)})


def continue_texts(
    model: Model,
    prompts: list[str],
    max_new_tokens: int,
    sampling: Sampling,
    stop: list[str] | tuple[str, ...],
    stream: Stream | None,
) -> list[Generation]:
    """Continue prompts with a loaded model.

    Raises:
        ModelError: the model has no tokenizer.
    """
    from ssmquant.runtime import generate as generation

    if model.tokenizer is None:
        raise ModelError(
            f"text was asked of {model.name}, which has no tokenizer; copy tokenizer.json and tokenizer_config.json "
            "of the original model into its folder"
        )
    return generation.generate(
        model.engine(),
        model.tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        stream=stream,
    )


def piece_printer(console: Console) -> Stream:
    """Return a stream that prints pieces as they come."""
    return lambda _, piece: console.out(printable(piece), end="", highlight=False)


def _print_prompt(console: Console, prompt: str) -> None:
    console.print(Text(printable(prompt), style="dim"), end="", soft_wrap=True)


def _read_prompts(prompts: list[str]) -> list[str]:
    if prompts.count("-") > 1:
        raise InputError('--prompt "-" was given twice, but stdin can be read once; give it once')
    return [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]


def _rows(prompts: list[str], results: list[Generation]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt,
            "text": result.text,
            "token_ids": list(result.token_ids),
            "finish_reason": result.finish_reason,
        }
        for prompt, result in zip(prompts, results, strict=True)
    ]
