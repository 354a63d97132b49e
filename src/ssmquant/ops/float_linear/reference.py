"""Exact reference of the linear layer with float activations: the weight in floats, and a float product."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ssmquant import numerics
from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int4_progressive_linear.reference import expand

__all__ = ["float_linear", "float_weight"]


def float_weight(
    weight: Tensor, scale: Tensor | None, zero_point: Tensor | None = None, grid: Tensor | None = None
) -> Tensor:
    """Return what a stored weight stands for, ``[N, K]``: float32 for codes, a float weight as it is.

    Args:
        weight: float or int8 ``[N, K]``, or uint8 ``[N, K / 2]``, see `int4_linear.packing`.
        scale: float32 ``[1]`` or ``[N]`` for int8, ``[N, groups]`` for int4, ``[N]`` with a grid; None for floats.
        zero_point: int8 ``[N, groups]``, of asymmetric int4 codes.
        grid: uint8 ``[N, groups]``, multiplier and zero point, see `int4_progressive_linear.reference.join_grid`.
    """
    if scale is None:
        return weight
    if grid is not None:
        return numerics.dequantize(expand(weight, grid), scale[:, None])
    if scale.dim() == 1:
        return numerics.dequantize(weight, scale[:, None])
    codes = unpack_int4(weight).unflatten(1, (scale.shape[1], -1))
    if zero_point is None:
        return numerics.dequantize(codes, scale[..., None]).flatten(1)
    return numerics.dequantize_asymmetric(codes, scale[..., None], zero_point[..., None]).flatten(1)


def float_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    grid: Tensor | None,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    """Return ``x @ float_weight(weight, scale, zero_point, grid).T + bias`` in the float type of x.

    Args:
        x: float ``[..., K]``, of any float dtype.
        weight: see `float_weight`; cast to the type of x, so a float16 weight is multiplied in float32 by a float32 x.
        scale: as there.
        zero_point: as there.
        grid: as there.
        bias: ``[N]``, of x's type.
        scale_out: float32 ``[1]`` or ``[N]``; None for float results.

    Returns:
        ``[..., N]`` in the type of x, or its int8 codes under ``scale_out``.
    """
    y = functional.linear(x, float_weight(weight, scale, zero_point, grid).to(x.dtype), bias)
    return y if scale_out is None else numerics.quantize(y, scale_out)
