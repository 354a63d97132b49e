"""Exact reference of the int8 linear layer."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ssmquant import numerics

__all__ = ["int8_linear", "int_matmul"]

# 127 * 127 * 1040 < 2**24: every partial sum over so many products is an integer that float32 holds exactly,
# in whatever order the matrix product adds them.
_EXACT_K = 1040


def int_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` of int8 tensors as exact int32.

    Float32 matrix products over blocks of K short enough to be exact, added as int32: fast on every device, and the
    same on each whatever its order of summation (TF32 must be off, PyTorch's default).

    Args:
        x: int8 ``[..., K]``.
        weight: int8 ``[N, K]``.

    Returns:
        int32 ``[..., N]``.
    """
    blocks = zip(x.split(_EXACT_K, dim=-1), weight.split(_EXACT_K, dim=-1), strict=True)
    first, *rest = ((a.float() @ b.float().T).to(torch.int32) for a, b in blocks)
    total: Tensor = reduce(torch.add, rest, first)
    return total


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    """Return the linear layer of int8 operands.

    ``y = float32(sum_k x[m, k] * w[n, k]) * (x_scale[m] * weight_scale[n]) + bias[n]``: the sum is exact in int32, then
    one rounding to float32, one product of the two scales, one product, and one sum if there is a bias (not fused).

    Args:
        x: int8 ``[..., K]``.
        x_scale: float32 ``[1]`` (static) or ``[..., 1]`` (one a token).
        weight: int8 ``[N, K]``.
        weight_scale: float32 ``[1]`` or ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``; None for float32 results.

    Returns:
        float32 ``[..., N]``, or its int8 codes under ``scale_out``.
    """
    y = int_matmul(x, weight).float() * (x_scale * weight_scale)
    if bias is not None:
        y = y + bias
    return y if scale_out is None else numerics.quantize(y, scale_out)
