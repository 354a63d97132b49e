"""`ssmquant bench`: how fast a model runs, beside the machine's limits and beside peers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmquant.cli.console import stdout
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import JsonFile
from ssmquant.cli.progress import Progress
from ssmquant.errors import InputError

if TYPE_CHECKING:
    from ssmquant.bench.subjects import OurModel
    from ssmquant.families import Config

__all__ = ["bench"]


class Device(StrEnum):
    """Where a model runs."""

    CPU = "cpu"
    CUDA = "cuda"


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder or Hub id, quantised or float.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of a model: random weights in the shape of a published one, mamba2-2.7b say.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME_OR_FILE[+option=value…]",
            help="In which --shape is made; quamba2-w8a8 (quamba-w8a8 for Mamba-1) without it.",
        ),
    ] = None,
    prompt_len: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of the prompt.")] = 512,
    gen_len: Annotated[int, typer.Option(metavar="N", min=1, help="Steps after it.")] = 128,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at once.")] = 1,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of every contestant; all cores without it.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the models run.")] = Device.CPU,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Repetitions that count.")] = 5,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="hf|hf-float32|hf-bfloat16|llama.cpp|OTHER",
            help="Peer that runs in turns with it; OTHER is a model, or with --shape a recipe. May be given several "
            "times.",
            show_default=False,
        ),
    ] = None,
    llama_bench: Annotated[
        Path | None, typer.Option(metavar="PATH", help="llama.cpp's llama-bench, for --against llama.cpp.")
    ] = None,
    gguf: Annotated[Path | None, typer.Option(metavar="FILE", help="The same model for llama.cpp.")] = None,
    json: JsonFile = None,
) -> None:
    """Measure speed and memory: TTFT, TPOT, TTLT, tokens/s, peak memory, shares of the machine's limits, ratios."""
    require_place(json)
    # Everything that can be refused is refused before the weights are read.
    if (model is None) == (shape is None):
        raise InputError("bench: name either a model or a --shape, one of the two")
    if model is not None and recipe is not None:
        raise InputError(
            f"--recipe {recipe} goes with --shape; a model is measured as it is: quantise it with `ssmquant quantize`"
        )
    import torch

    from ssmquant.bench.measure import measure
    from ssmquant.bench.peers import Request, find_peers
    from ssmquant.bench.probe import find_probe
    from ssmquant.bench.tables import tables
    from ssmquant.bench.worker import Worker
    from ssmquant.bench.workload import Workload
    from ssmquant.eval.environment import environment

    if device is Device.CUDA and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    workload = Workload(prompt_len, gen_len, batch, repeats)
    ours, config = _model(model, shape, recipe, device)
    count = threads or int(environment()["cores"])
    request = Request(ours, config, workload, count, llama_bench, gguf)
    contestants = [
        Worker(ours, count),
        *(peer for word in against or () for peer in find_peers(word, request)),
    ]
    with Progress() as progress:
        measurement = measure(contestants, find_probe(device, count), workload, progress)
    console = stdout()
    for table in tables(measurement):
        console.print(table)
    write_json(json, measurement.to_json())


def _model(
    model: str | None, shape: str | None, recipe: str | None, device: Device
) -> tuple[OurModel, Config]:
    """Return what is measured, and its config; a shape and recipe that do not fit are refused."""
    from ssmquant.bench.shapes import default_recipe, shape_config
    from ssmquant.bench.subjects import OurModel
    from ssmquant.bench.synthetic import shape_plan
    from ssmquant.checkpoint import is_quantised
    from ssmquant.families import model_config
    from ssmquant.files import read_config, resolve
    from ssmquant.planning import Plan

    if shape is None:
        assert model is not None
        folder = resolve(model)
        raw = read_config(folder)
        config = model_config(raw, str(folder))
        if is_quantised(raw):  # tying is the plan's there
            config.tie_word_embeddings = Plan.from_json(raw["quantization_config"]["plan"], config).tied
        return OurModel(model, None, device.value), config
    config = shape_config(shape)
    recipe = recipe or default_recipe(shape)
    shape_plan(shape, recipe)
    return OurModel(shape, recipe, device.value), config
