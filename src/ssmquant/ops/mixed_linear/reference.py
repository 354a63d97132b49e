"""Exact reference of the linear layer with int4 weights, int8 outlier channels, and activations quantised inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int8_linear.reference import int_matmul

__all__ = ["mixed_linear"]


def mixed_linear(
    x: Tensor,
    order: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    outliers: Tensor,
    outlier_scale: Tensor,
    bits: int,
    clip: float,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    """Return the linear layer of float activations that are quantised here, a token and group at a time.

    The channels of x are brought into ``order``: groups of ordinary channels first, the outliers after them. Each
    group of each token becomes ``bits``-bit codes under ``clip`` of its largest magnitude, the outliers become int8
    codes under all of it. ``y = sum_g float32(sum_{k in g} a[m, k] * w[n, k]) * (a_scale[m, g] * w_scale[n, g])``: the
    inner sums are exact integers; the outer sum is float32, group after group in order and the outliers last, the
    product of the scales, their product with the inner sum, and the sum all rounded apart; then ``+ bias[n]``.

    Args:
        x: float ``[..., K]``.
        order: int32 ``[K]``, the channel of x at each place, a permutation.
        packed: uint8 ``[N, (K - outliers) / 2]``, int4 codes of the ordinary channels, see `int4_linear.packing`.
        weight_scale: float32 ``[N, groups]``; a group is ``(K - outliers) / groups`` places.
        outliers: int8 ``[N, outliers]``, codes of the last channels in ``order``.
        outlier_scale: float32 ``[N]``.
        bits: width of the activation codes of ordinary channels, 2 to 8.
        clip: share of a group's range that its codes span, above 0 and at most 1.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``; None for float32 results.

    Returns:
        float32 ``[..., N]``, or its int8 codes under ``scale_out``.
    """
    ordered = x.float().index_select(-1, order)
    codes = unpack_int4(packed)
    groups, size = weight_scale.shape[1], codes.shape[1] // weight_scale.shape[1]
    *parts, last = ordered.split([size] * groups + [outliers.shape[1]], dim=-1)
    total = torch.zeros((*x.shape[:-1], codes.shape[0]), dtype=torch.float32, device=x.device)
    for part, rows, scale in zip(parts, codes.split(size, dim=1), weight_scale.T, strict=True):
        total = total + _product(part, clip, bits, rows, scale)
    y = total + _product(last, 1.0, 8, outliers, outlier_scale)
    if bias is not None:
        y = y + bias
    return y if scale_out is None else numerics.quantize(y, scale_out)


def _product(x: Tensor, clip: float, bits: int, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """Return the product of channels that share a scale a token and a scale a row, float32 ``[..., N]``."""
    scale = numerics.per_token_scale(x, bits, clip)
    return int_matmul(numerics.quantize(x, scale, bits), weight).float() * (scale * weight_scale)
