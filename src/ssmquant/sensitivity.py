"""Sensitivity: how far the model goes from itself when one weight, or one layer's activations, are quantised alone.

Measured as the KL divergence of the next-token distributions on calibration text, forward passes only. Divergences of
small errors that have nothing to do with each other add up, which makes a choice of many such errors a linear problem.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmquant.calibrate import Progress
from ssmquant.families import Shell

__all__ = ["ACTIVATIONS", "Divergences", "sensitivities", "sensitivities_cached"]

Divergences = Mapping[str, Mapping[str, float]]
"""KL divergence in nats a token, by site and scheme; of layers (``layers.3``) by `ACTIVATIONS`."""

ACTIVATIONS = "activations"
_CACHE_VERSION = 1
_LOG = logging.getLogger(__name__)
_WINDOWS = 8
_EVERY = 4  # of so many predictions one is looked at: neighbours say much the same, and logits are dear
_CHUNK_ELEMENTS = 2**19  # logits held in float64 at a time, for each of two models


@torch.no_grad()
def sensitivities(
    shell: Shell,
    weights: Mapping[str, Shell],
    sites: Sequence[str],
    activations: Shell,
    windows: Tensor,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Return the divergence of the model with one thing quantised alone, for each of them.

    Args:
        shell: the float model.
        weights: by name of a scheme, the same model with the weights of all sites under it, activations float.
        sites: weights of layers, ``layers.0.in_proj.weight``.
        activations: the same model with float weights and the activations of all layers quantised.
        windows: calibration text, int64 ``[n, L]``; eight sequences of it are used, and every fourth prediction.
        progress: called after each sequence.
    """
    text = windows[:: max(1, len(windows) // _WINDOWS)][:_WINDOWS].to(shell.device)
    layers = {f"layers.{index}": index for index in range(len(shell.blocks))}
    of_layer = {index: [s for s in sites if s.startswith(f"{name}.")] for name, index in layers.items()}
    found = {site: dict.fromkeys(weights, 0.0) for site in sites}
    found |= {layer: {ACTIVATIONS: 0.0} for layer in layers}
    positions = len(text) * -(-text.shape[1] // _EVERY)
    for done, window in enumerate(text, start=1):
        residuals = [shell.embedding(window[None])]
        for block in shell.blocks:
            residuals.append(residuals[-1] + block.mixer.mix(block.norm(residuals[-1])))
        exact = _logits(shell, residuals[-1])

        def divergence(residual: Tensor, after: int, exact: Tensor = exact) -> float:
            """Return the divergence of a residual stream that leaves a block, float from there on."""
            for block in shell.blocks[after + 1 :]:
                residual = residual + block.mixer.mix(block.norm(residual))
            return _divergence(exact, _logits(shell, residual))

        for layer, index in layers.items():
            block, residual = shell.blocks[index], residuals[index]
            for site in of_layer[index]:
                stage = site.split(".")[2]
                for name, variant in weights.items():
                    with _swapped(block.mixer, stage, getattr(variant.blocks[index].mixer, stage)):
                        left = residual + block.mixer.mix(block.norm(residual))
                    found[site][name] += divergence(left, index) / positions
            left = residual + activations.blocks[index].mixer.mix(block.norm(residual))
            found[layer][ACTIVATIONS] += divergence(left, index) / positions
        if progress:
            progress("measure sensitivity", done, len(text))
    return found


@contextmanager
def _swapped(holder: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Put another module into a place of the float model for a while."""
    usual = getattr(holder, name)
    setattr(holder, name, module)
    try:
        yield
    finally:
        setattr(holder, name, usual)


def _logits(shell: Shell, residual: Tensor) -> Tensor:
    """Return the logits of some positions, ``[positions, vocab]``."""
    logits: Tensor = shell.head(shell.final_norm(residual[:, ::_EVERY]))[0]
    return logits


def _divergence(exact: Tensor, other: Tensor) -> float:
    """Return the sum over positions of KL(exact ‖ other), from logits ``[positions, vocab]``, in float64."""
    step = max(1, _CHUNK_ELEMENTS // exact.shape[1])
    total = 0.0
    for a, b in zip(exact.split(step), other.split(step), strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        # A divergence is never negative; rounding of equal distributions can make it -1e-16.
        total += float((p.exp() * (p - q)).sum(-1).clamp_min(0).sum())
    return total


def sensitivities_cached(
    measured: Callable[[], Divergences], key: Mapping[str, Any], *, cache: Path | None
) -> Divergences:
    """Return what was measured under a key before, or measure it now.

    Args:
        measured: measures.
        key: all that the result depends on, as plain data.
        cache: folder of the cache; None for no cache.
    """
    if cache is None:
        return measured()
    text = json.dumps({"version": _CACHE_VERSION, **key}, sort_keys=True)
    path = cache / "sensitivity" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        found: Divergences = json.loads(path.read_text(encoding="utf-8"))
        return found
    made = measured()
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(made), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        _LOG.warning("sensitivities are not cached: %s cannot be written (%s)", path, error)
    return made
