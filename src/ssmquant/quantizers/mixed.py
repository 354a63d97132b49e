"""Mixed precision: the input channels of largest activations get int8 codes, all others int4 codes in groups.

Atom, arXiv 2310.19102, section 4: channels are ordered by the sum of squares of the activations that calibration saw,
which is the diagonal of the Hessian. So channels of like size share a group, and the outliers come last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.formats import Codes
from ssmquant.quantizers.gptq import gptq
from ssmquant.quantizers.round_to_nearest import round_to_nearest
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["channel_order", "mixed_gptq", "mixed_rtn"]

_OUTLIERS = TensorScheme(bits=8, granularity=Granularity.PER_CHANNEL)
_DAMPING = 0.01  # of the mean diagonal, as GPTQ's


def channel_order(hessian: Tensor) -> Tensor:
    """Return the input channels by ascending sum of squares, int32 ``[K]``; equal ones stay in their order.

    Args:
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``.
    """
    return torch.argsort(hessian.diagonal(), stable=True).to(torch.int32)


def mixed_rtn(weight: Tensor, hessian: Tensor, scheme: TensorScheme) -> Codes:
    """Return the codes nearest to a weight.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``; its diagonal orders the channels.
        scheme: a mixed scheme.
    """
    order = channel_order(hessian)
    ordinary, outliers = _split(weight[:, order], scheme)
    return _codes(order, round_to_nearest(ordinary, scheme), round_to_nearest(outliers, _OUTLIERS))


def mixed_gptq(weight: Tensor, hessian: Tensor, scheme: TensorScheme) -> Codes:
    """Return codes that keep ``W x`` for the inputs that the Hessian has seen.

    GPTQ with the outliers as the last columns, so that eight bits make up for what four have lost. It falls into two
    runs: one over the ordinary channels, whose Hessian is the Schur complement of the outliers' (the loss that is left
    once the outliers have been fitted), and one over the outliers so fitted.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``.
        scheme: a mixed scheme.

    Raises:
        SsmquantError: as `gptq`.
    """
    order = channel_order(hessian)
    h = hessian.double()[order][:, order]
    mean = h.diagonal().mean()
    h = h + _DAMPING * torch.where(mean > 0, mean, 1.0) * torch.eye(len(h), dtype=h.dtype, device=h.device)
    ordinary, outliers = _split(weight[:, order].double(), scheme)
    n = ordinary.shape[1]
    fit = torch.linalg.solve(
        h[n:, n:], h[n:, :n]
    )  # what a change of an ordinary channel asks of the outliers
    first = gptq(ordinary, h[:n, :n] - h[:n, n:] @ fit, scheme, damping=0.0)
    kept = numerics.dequantize(first.codes.unflatten(1, (first.scale.shape[1], -1)), first.scale[..., None])
    second = gptq(outliers + (ordinary - kept.flatten(1)) @ fit.T, h[n:, n:], _OUTLIERS, damping=0.0)
    return _codes(order, first, second)


def _split(columns: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return ordinary and outlier columns of a tensor ``[N, K]`` in the order of the channels."""
    assert scheme.mixed
    outliers = scheme.mixed.outliers
    return columns[:, :-outliers], columns[:, -outliers:]


def _codes(order: Tensor, ordinary: Codes, outliers: Codes) -> Codes:
    return Codes(ordinary.codes, ordinary.scale, order=order, outliers=outliers)
