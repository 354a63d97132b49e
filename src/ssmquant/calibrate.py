"""Calibration: run text through the float model and gather statistics at its sites.

Windows run one by one, so that a statistic is the same bit for bit in whatever order or shards they are run:
``calibrate(a).merge(calibrate(b))`` equals ``calibrate(a and b)``. Observers of activations see them on the way
through the model; those of weights see the gradient of each window's next-token loss. Statistics are cached on
disk under a hash of the model's tensors, the tokens, and what was gathered, with the seconds that it took.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ssmquant.errors import DataError
from ssmquant.families import Block, Shell
from ssmquant.files import combined, digest, digests
from ssmquant.modules.mixer import StateSite
from ssmquant.ops.registry import use_backend
from ssmquant.runtime.engine import Engine
from ssmquant.statistics import Needs, Statistics

__all__ = ["Gather", "Progress", "cache_folder", "calibrate", "calibrate_cached", "identity"]

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

Gather = Callable[[Shell, Tensor, Needs, Progress | None], Statistics]
"""What `calibrate` is, or does the same elsewhere."""

_CACHE_VERSION = 2
_ACTIVATIONS = "activations"
_GRADIENTS = "gradients"
_SECONDS = "seconds"
_LOG = logging.getLogger(__name__)


@torch.no_grad()
@use_backend("reference")
def calibrate(shell: Shell, windows: Tensor, needs: Needs, progress: Progress | None = None) -> Statistics:
    """Return the statistics of a float model over some text; the reference runs it, so that they depend on no kernel.

    Args:
        shell: the float model.
        windows: int64 ``[n, L]``, one sequence a row, or a shard of them.
        needs: observers wanted, by site.
        progress: called after each window.

    Raises:
        DataError: there is no window, or gradients are wanted of windows of one token.
    """
    if not len(windows):
        raise DataError("calibration needs at least one sequence; none was given")
    statistics = Statistics.empty(needs)
    weights = dict(shell.weights())
    if activation_sites := [site for site in needs if site not in weights]:
        _observe_activations(shell, windows, statistics, activation_sites, progress)
    if weight_sites := [site for site in needs if site in weights]:
        _observe_gradients(shell, windows, statistics, weight_sites, progress)
    return statistics


@contextmanager
def _timed(statistics: Statistics, during: str) -> Iterator[None]:
    """Note the seconds of a pass, those of its observers left out."""
    start, before = perf_counter(), sum(statistics.seconds.values())
    yield
    observers = sum(statistics.seconds.values()) - before
    statistics.seconds[during] = perf_counter() - start - observers


def _observe_activations(
    shell: Shell, windows: Tensor, statistics: Statistics, sites: Sequence[str], progress: Progress | None
) -> None:
    modules = dict(shell.activations())
    engine = Engine(shell)
    with ExitStack() as hooks, _timed(statistics, _ACTIVATIONS):
        for site in sites:
            handle = modules[site].register_forward_hook(_hook(statistics, site))
            hooks.callback(handle.remove)
        for done, window in enumerate(windows, start=1):
            hidden, _ = engine.hidden(window[None], None)
            shell.head.input(hidden)
            if progress:
                progress("calibrate", done, len(windows))


def _observe_gradients(
    shell: Shell, windows: Tensor, statistics: Statistics, sites: Sequence[str], progress: Progress | None
) -> None:
    """Show the observers of some weights the gradients of each window's loss, one window at a time."""
    if windows.shape[1] < 2:
        raise DataError(
            f"gradients need a next token to predict: sequences of 2 tokens at least, not {windows.shape[1]}"
        )
    weights = dict(shell.weights())
    with ExitStack() as undo, _timed(statistics, _GRADIENTS):
        for parameter in shell.model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for site in sites:
            weight = weights[site].weight.requires_grad_()
            handle = weight.register_post_accumulate_grad_hook(_gradient_hook(statistics, site))
            undo.callback(handle.remove)
        for done, window in enumerate(windows, start=1):
            with torch.enable_grad():
                _loss(shell, window.to(shell.device)).backward()
            if progress:
                progress("calibrate gradients", done, len(windows))


def _loss(shell: Shell, window: Tensor) -> Tensor:
    """Return the mean loss of predicting each token of a window (``[L]``) from those before it."""
    residual = shell.embedding(window[None, :-1])
    for block in shell.blocks:
        # Run again on the way back, so that only one block's intermediate results are kept at a time.
        residual = residual + checkpoint(_branch, block, residual, use_reentrant=False)
    logits = shell.head(shell.final_norm(residual))
    return cross_entropy(logits[0], window[1:])


def _branch(block: Block, residual: Tensor) -> Tensor:
    return block.mixer.mix(block.norm(residual))


def _gradient_hook(statistics: Statistics, site: str) -> Callable[[Tensor], None]:
    def observe(weight: Tensor) -> None:
        assert weight.grad is not None
        statistics.update(site, weight.grad[None], during=_GRADIENTS)
        weight.grad = None

    return observe


def _hook(statistics: Statistics, site: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def observe(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        (x,) = inputs
        # Tokens (or sequences, for a state) first; a state keeps its rows and d_state apart.
        x = x.flatten(1, -2) if isinstance(module, StateSite) else x.flatten(0, -2)
        statistics.update(site, x, during=_ACTIVATIONS)

    return observe


def cache_folder() -> Path:
    """Return the folder of cached statistics: ``$SSMQUANT_CACHE``, or ``ssmquant`` in the user's cache folder."""
    chosen = os.environ.get("SSMQUANT_CACHE")
    return (
        Path(chosen)
        if chosen
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssmquant"
    )


def calibrate_cached(
    shell: Shell,
    windows: Tensor,
    needs: Needs,
    progress: Progress | None = None,
    *,
    cache: Path | None,
    gather: Gather | None = None,
) -> Statistics:
    """Return `calibrate`'s result, as far as possible from the cache: only what is not there yet is gathered.

    Of several processes that want the same, one gathers and the others wait for it.

    Args:
        shell: the float model.
        windows: int64 ``[n, L]``.
        needs: observers wanted, by site.
        progress: called after each window.
        cache: folder of the cache; None for no cache.
        gather: gathers what is missing; by default `calibrate`.
    """
    gather = gather or calibrate
    if cache is None:
        return gather(shell, windows, needs, progress)
    key = {"version": _CACHE_VERSION, "model": identity(shell), "windows": digest(windows)}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache / "calibration" / f"{name}.safetensors"
    with _locked(cache / "locks" / name):
        statistics = _read(path)
        if missing := statistics.lacking(needs):
            statistics = statistics.joined(gather(shell, windows, missing, progress))
            _write(path, statistics)
    return statistics


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out; where no lock can be had they are not, and at worst do the same work twice."""
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(path))
        except (OSError, NotImplementedError) as error:
            _LOG.warning("the cache of statistics is not locked: %s (%s)", path, error)
        yield


def identity(shell: Shell) -> dict[str, Any]:
    """Return what a float model's results depend on: the digest of its tensors, and the constants of each block.

    Those are sizes, limits of dt, epsilons, the online transform.
    """
    constants = [repr((block.norm.eps, block.mixer.dims, block.mixer.hadamard)) for block in shell.blocks]
    return {"tensors": combined(digests(shell.model.state_dict())), "constants": constants}


def _read(path: Path) -> Statistics:
    """Return the statistics of a cache entry; none if it is missing or damaged."""
    try:
        statistics = Statistics.from_tensors(load_file(path))
        with safe_open(path, framework="pt") as file:
            statistics.seconds.update(json.loads(file.metadata()[_SECONDS]))
        return statistics
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return Statistics()


def _write(path: Path, statistics: Statistics) -> None:
    """Write a cache entry; where that is not possible, a warning in the log is all: the statistics are at hand."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in statistics.to_tensors().items()}
        save_file(tensors, partial, metadata={_SECONDS: json.dumps(statistics.seconds)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        _LOG.warning("calibration is not cached: %s cannot be written (%s)", path, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
