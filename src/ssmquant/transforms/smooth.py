"""`smooth`: outliers of the activations move into the weights (SmoothQuant, arXiv 2211.10438, section 4, equation 4).

Channel j of a linear layer's input is divided by ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``, and column j of its
weight multiplied by it. The division goes into the gain of the norm before: block norm → in_proj in both mixers, gated
norm → out_proj in Mamba-2.

Mamba-1's out_proj is left alone. Its input is ``scan(x) * silu(z)``, of which no factor is free: a scale on the gate
would have to pass SiLU to reach in_proj, and one on the scan's output would have to pass x, which leaves the
convolution through SiLU and is read by x_proj and by the scan itself. It could not be folded exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ssmquant.families import Shell
from ssmquant.modules.mamba2 import GatedNorm, Mamba2Mixer
from ssmquant.modules.weights import Linear, RMSNorm
from ssmquant.scheme import FLOAT32
from ssmquant.statistics import Needs
from ssmquant.transforms.base import Context, Transform, replace_parameter

__all__ = ["SMOOTH", "Pair", "pairs", "smoothing_scale"]

_SMALLEST = 1e-5  # of a column's maximum and of a scale, as in the authors' code


class Pair(NamedTuple):
    """A linear layer and the norm whose result it reads: a scale a channel can go from one to the other.

    Attributes:
        norm: the norm; nothing else reads its result.
        linear: the linear layer.
        input: name of the activation site between them.
        weight: name of the linear layer's weight site.
    """

    norm: RMSNorm | GatedNorm
    linear: Linear
    input: str
    weight: str

    def scale(self, factor: Tensor) -> None:
        """Multiply the columns of the weight by ``factor [K]`` and divide the norm's gain by it."""
        replace_parameter(self.linear, "weight", self.linear.weight.detach() * factor)
        replace_parameter(self.norm, "weight", self.norm.weight.detach() / factor)


def pairs(shell: Shell) -> Iterator[Pair]:
    """Return every pair of a norm and the linear layer that reads it; the head is none (its norm is the model's)."""
    for index, block in enumerate(shell.blocks):
        prefix, mixer = f"layers.{index}", block.mixer
        yield Pair(block.norm, mixer.in_proj, f"{prefix}.hidden", f"{prefix}.in_proj.weight")
        if isinstance(mixer, Mamba2Mixer):
            yield Pair(mixer.norm, mixer.out_proj, f"{prefix}.y", f"{prefix}.out_proj.weight")


def smoothing_scale(absmax: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Return the factor of each channel, float64 ``[K]``.

    Args:
        absmax: largest magnitude of each input channel, ``[K]``.
        weight: ``[N, K]``.
        alpha: how much of the difficulty moves to the weights, 0 to 1.
    """
    columns = weight.double().abs().amax(dim=0).clamp(min=_SMALLEST)
    scale = (absmax.double() ** alpha / columns ** (1 - alpha)).clamp(min=_SMALLEST)
    # A channel that was always zero says nothing about its range: magnifying it would be a guess.
    return torch.where(absmax > 0, scale, 1.0)


def _apply(shell: Shell, context: Context) -> None:
    for pair in pairs(shell):
        scheme = context.schemes.get(pair.input, FLOAT32)
        if not scheme.is_float:  # a float activation has no outliers to share
            absmax = context.statistics.absmax(pair.input)
            pair.scale(smoothing_scale(absmax, pair.linear.weight.detach(), context.params["alpha"]))


def _needs(shell: Shell) -> Needs:
    return {pair.input: ("absmax",) for pair in pairs(shell)}


SMOOTH = Transform("smooth", _apply, needs=_needs, params={"alpha": (0.0, 1.0)})
