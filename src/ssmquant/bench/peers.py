"""The table of peers: what stands behind each word of ``--against``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssmquant.bench.contestant import Contestant
from ssmquant.bench.llama_cpp import LlamaCpp
from ssmquant.bench.subjects import OurModel, TransformersModel
from ssmquant.bench.synthetic import shape_plan
from ssmquant.bench.worker import Worker
from ssmquant.bench.workload import Workload
from ssmquant.errors import InputError
from ssmquant.families import Config, model_sites
from ssmquant.files import read_config, resolve
from ssmquant.sites import SiteKind

__all__ = ["PEERS", "Request", "find_peers"]


@dataclass(frozen=True)
class Request:
    """What is measured, as far as its peers must know.

    Attributes:
        ours: the model in question.
        config: its config.
        workload: what is timed.
        threads: of every contestant.
        llama_bench: llama.cpp's program; None if none was named.
        gguf: its model.
    """

    ours: OurModel
    config: Config
    workload: Workload
    threads: int
    llama_bench: Path | None = None
    gguf: Path | None = None


def _transformers(*dtypes: str) -> Callable[[Request], list[Contestant]]:
    def contestants(request: Request) -> list[Contestant]:
        specs = (TransformersModel(request.config, dtype, request.ours.device) for dtype in dtypes)
        return [Worker(spec, request.threads) for spec in specs]

    return contestants


def _llama_cpp(request: Request) -> list[Contestant]:
    if request.llama_bench is None or request.gguf is None:
        raise InputError("--against llama.cpp needs --llama-bench PATH and --gguf FILE")
    if request.workload.batch > 1:
        raise InputError(
            f"--against llama.cpp with --batch {request.workload.batch}: llama-bench runs one sequence; use --batch 1"
        )
    if request.ours.device != "cpu":
        raise InputError(
            "--against llama.cpp is for --device cpu: how it uses a GPU depends on how it was built"
        )
    sites = model_sites(request.config)
    tied = bool(request.config.tie_word_embeddings)
    parameters = sum(
        site.numel
        for site in sites
        if site.kind is SiteKind.WEIGHT and not (tied and site.name == "lm_head.weight")
    )
    return [LlamaCpp(request.llama_bench, request.gguf, request.threads, parameters)]


PEERS: dict[str, Callable[[Request], list[Contestant]]] = {
    "hf": _transformers("float32", "bfloat16"),
    "hf-float32": _transformers("float32"),
    "hf-bfloat16": _transformers("bfloat16"),
    "llama.cpp": _llama_cpp,
}


def find_peers(word: str, request: Request) -> list[Contestant]:
    """Return the contestants behind a word.

    Args:
        word: a key of `PEERS`; anything else names another model of ours: a recipe where ours is a named shape, a
            folder or Hub id where it is one.
        request: what they are compared with.

    Raises:
        InputError: the peer does not exist, or cannot run what is asked for; nothing has been loaded.
    """
    if word in PEERS:
        return PEERS[word](request)
    ours = request.ours
    if ours.recipe is None:
        read_config(resolve(word))
        return [Worker(OurModel(word, None, ours.device), request.threads)]
    shape_plan(ours.model, word)
    return [Worker(OurModel(ours.model, word, ours.device), request.threads)]
