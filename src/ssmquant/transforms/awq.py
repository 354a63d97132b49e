"""`awq`: channels that matter are magnified before weights are rounded (AWQ, arXiv 2306.00978, section 3.2).

Column j of a linear layer's weight is multiplied by ``s_j = mean|X_j|^alpha`` and its input divided by it: the weights
that meet large activations are rounded more finely. For each layer alpha is that of 0, 1/20, … 19/20 under which
rounding to the plan's scheme changes the layer's output least.

The authors measure the change on sampled tokens. Its square over all tokens is ``sum over rows of dW H dW^T`` with the
second moment ``H = sum x x^T``, which calibration has exactly.

Where the scales go is as for `smooth`. Mamba-1's out_proj has no norm before it and gets none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.families import Shell
from ssmquant.formats import restored
from ssmquant.quantizers.clip import output_error
from ssmquant.quantizers.round_to_nearest import round_to_nearest
from ssmquant.scheme import FLOAT32, TensorScheme
from ssmquant.statistics import Needs
from ssmquant.transforms.base import Context, Transform
from ssmquant.transforms.smooth import pairs

__all__ = ["AWQ", "candidate", "search"]

_GRID = 20
_SMALLEST = 1e-4  # of a magnitude's power, as in the authors' code


def candidate(mean_abs: Tensor, alpha: float) -> Tensor:
    """Return the factor of each channel under one alpha, ``[K]``, its extremes balanced around 1.

    Args:
        mean_abs: mean magnitude of each input channel, ``[K]``.
        alpha: 0 (all factors 1) to 1.
    """
    scale = (mean_abs**alpha).clamp(min=_SMALLEST)
    return scale / (scale.max() * scale.min()).sqrt()


def search(weight: Tensor, mean_abs: Tensor, moment: Tensor, scheme: TensorScheme) -> Tensor:
    """Return the factor of each channel, float64 ``[K]``, under which rounding changes the output least.

    Args:
        weight: float ``[N, K]``.
        mean_abs: mean magnitude of each input channel, ``[K]``.
        moment: ``sum x x^T`` over the inputs, ``[K, K]``.
        scheme: that the weight is rounded to.
    """
    moment = moment.to(weight.dtype)

    def error(factor: Tensor) -> float:
        factor = factor.to(weight.dtype)
        rounded = round_to_nearest(weight * factor, scheme)
        difference = restored(rounded, scheme) / factor - weight
        return float(output_error(difference, moment).sum(dtype=torch.float64))

    return min((candidate(mean_abs.double(), step / _GRID) for step in range(_GRID)), key=error)


def _apply(shell: Shell, context: Context) -> None:
    for pair in pairs(shell):
        scheme = context.schemes.get(pair.weight, FLOAT32)
        if not scheme.is_float:
            mean_abs = context.statistics.mean_abs(pair.input)
            moment = context.statistics.hessian(pair.input)
            pair.scale(search(pair.linear.weight.detach(), mean_abs, moment, scheme))


def _needs(shell: Shell) -> Needs:
    return {pair.input: ("mean_abs", "hessian") for pair in pairs(shell)}


AWQ = Transform("awq", _apply, needs=_needs)
