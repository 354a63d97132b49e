"""Exact reference of the linear layer with int8 activations and int4 weights in groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int8_linear.reference import int_matmul

__all__ = ["int4_linear"]


def int4_linear(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    """Return the linear layer of int8 activations and int4 weights with a scale for each group along K.

    ``y = x_scale[m] * sum_g float32(sum_{k in g} x[m, k] * w[n, k]) * weight_scale[n, g] + bias[n]``: the inner sums
    are exact integers; the outer sum is float32, group after group in order, product and sum rounded apart.

    Args:
        x: int8 ``[..., K]``.
        x_scale: float32 ``[1]`` (static) or ``[..., 1]`` (one a token).
        packed: uint8 ``[N, K / 2]``, see `packing`.
        weight_scale: float32 ``[N, groups]``; a group is ``K / groups`` neighbours.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``; None for float32 results.

    Returns:
        float32 ``[..., N]``, or its int8 codes under ``scale_out``.
    """
    codes = unpack_int4(packed)
    size = codes.shape[1] // weight_scale.shape[1]
    total = torch.zeros((*x.shape[:-1], codes.shape[0]), dtype=torch.float32, device=x.device)
    for part, rows, scale in zip(
        x.split(size, dim=-1), codes.split(size, dim=1), weight_scale.T, strict=True
    ):
        total = total + int_matmul(part, rows).float() * scale
    y = total * x_scale
    if bias is not None:
        y = y + bias
    return y if scale_out is None else numerics.quantize(y, scale_out)
