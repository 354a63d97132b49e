"""Calibration: run text through the float model and gather statistics at its sites.

Windows run one by one, so that a statistic is the same bit for bit in whatever order or shards they are run:
``calibrate(a).merge(calibrate(b))`` equals ``calibrate(a and b)``. Statistics are cached on disk under a hash
of the model's tensors, the tokens, and what was gathered.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssmquant.errors import DataError
from ssmquant.families import Shell
from ssmquant.files import combined, digest, digests
from ssmquant.modules.mixer import StateSite
from ssmquant.runtime.engine import Engine
from ssmquant.statistics import Needs, Statistics

__all__ = ["Progress", "cache_folder", "calibrate", "calibrate_cached"]

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

_CACHE_VERSION = 1


@torch.no_grad()
def calibrate(shell: Shell, windows: Tensor, needs: Needs, progress: Progress | None = None) -> Statistics:
    """Return the statistics of a float model over some text.

    Args:
        shell: the float model.
        windows: int64 ``[n, L]``, one sequence a row, or a shard of them.
        needs: observers wanted, by site.
        progress: called after each window.

    Raises:
        DataError: there is no window.
    """
    if not len(windows):
        raise DataError("calibration needs at least one sequence; none was given")
    statistics = Statistics.empty(needs)
    modules = dict(shell.activations())
    engine = Engine(shell)
    with ExitStack() as hooks:
        for site in needs:
            handle = modules[site].register_forward_hook(_hook(statistics, site))
            hooks.callback(handle.remove)
        for done, window in enumerate(windows, start=1):
            hidden, _ = engine.hidden(window[None], None)
            shell.head.input(hidden)
            if progress:
                progress("calibrate", done, len(windows))
    return statistics


def _hook(statistics: Statistics, site: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def observe(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        (x,) = inputs
        # Tokens (or sequences, for a state) first; a state keeps its rows and d_state apart.
        x = x.flatten(1, -2) if isinstance(module, StateSite) else x.flatten(0, -2)
        for observer in statistics.observers(site):
            observer.update(x)

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
    shell: Shell, windows: Tensor, needs: Needs, progress: Progress | None = None, *, cache: Path | None
) -> Statistics:
    """Return `calibrate`'s result, as far as possible from the cache: only what is not there yet is gathered.

    Args:
        shell: the float model.
        windows: int64 ``[n, L]``.
        needs: observers wanted, by site.
        progress: called after each window.
        cache: folder of the cache; None for no cache.
    """
    if cache is None:
        return calibrate(shell, windows, needs, progress)
    key = {
        "version": _CACHE_VERSION,
        "model": combined(digests(shell.model.state_dict())),
        "hadamard": [block.mixer.hadamard for block in shell.blocks],
        "windows": digest(windows),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache / "calibration" / f"{name}.safetensors"
    statistics = _read(path)
    if missing := statistics.lacking(needs):
        statistics = statistics.joined(calibrate(shell, windows, missing, progress))
        _write(path, statistics)
    return statistics


def _read(path: Path) -> Statistics:
    """Return the statistics of a cache entry; none if it is missing or damaged."""
    try:
        return Statistics.from_tensors(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError):
        return Statistics()


def _write(path: Path, statistics: Statistics) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({name: tensor.contiguous() for name, tensor in statistics.to_tensors().items()}, partial)
    partial.replace(path)
