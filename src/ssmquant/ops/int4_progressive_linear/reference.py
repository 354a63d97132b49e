"""Exact reference of the linear layer with int8 activations and int4 weights whose groups have integer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int8_linear.reference import int8_linear

__all__ = ["expand", "int4_progressive_linear", "join_grid", "largest_multiplier", "split_grid"]


def join_grid(multiplier: Tensor, zero_point: Tensor) -> Tensor:
    """Return the byte of each group: the multiplier in its low nibble, the zero point plus 8 in its high one.

    Args:
        multiplier: uint8 in [1, 15], of any shape, at most `largest_multiplier` of its zero point.
        zero_point: int8 in [-8, 7], same shape.
    """
    return multiplier | ((zero_point + 8).to(torch.uint8) << 4)


def split_grid(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return multiplier (uint8) and zero point (int8) of each group; see `join_grid`."""
    return grid & 0xF, (grid >> 4).to(torch.int8) - 8


def largest_multiplier(zero_point: Tensor) -> Tensor:
    """Return the largest multiplier with which every code of a group is within int8: 15 for zero points -1 and 0."""
    above, below = 7 - zero_point.int(), zero_point.int() + 8
    return torch.div(127, torch.maximum(above, below), rounding_mode="floor")


def expand(packed: Tensor, grid: Tensor) -> Tensor:
    """Return the int8 weight that codes stand for: ``(code - zero_point) * multiplier``.

    Args:
        packed: uint8 ``[N, K / 2]``, codes in [-8, 7], see `int4_linear.packing`.
        grid: uint8 ``[N, groups]``, see `join_grid`; a group is ``K / groups`` neighbours.

    Returns:
        int8 ``[N, K]``.
    """
    multiplier, zero_point = (part.to(torch.int8)[..., None] for part in split_grid(grid))
    codes = unpack_int4(packed).unflatten(1, (grid.shape[1], -1))
    expanded: Tensor = ((codes - zero_point) * multiplier).flatten(1)
    return expanded


def int4_progressive_linear(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    """Return the linear layer of int8 activations and int4 weights with an integer step and zero point for each group.

    Progressive group quantisation (QServe, arXiv 2405.04532, section 4.1): a weight is
    ``(code - zero_point[n, g]) * multiplier[n, g] * weight_scale[n]``, where the product of the two integers is an int8
    code. So the sum over all of K is one exact integer, and the layer is `int8_linear` of the expanded weight, bit for
    bit.

    Args:
        x: int8 ``[..., K]``.
        x_scale: float32 ``[1]`` (static) or ``[..., 1]`` (one a token).
        packed: uint8 ``[N, K / 2]``, codes in [-8, 7], see `int4_linear.packing`.
        grid: uint8 ``[N, groups]``, multiplier and zero point, see `join_grid`; a group is ``K / groups`` neighbours.
        weight_scale: float32 ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``; None for float32 results.

    Returns:
        float32 ``[..., N]``, or its int8 codes under ``scale_out``.
    """
    return int8_linear(x, x_scale, expand(packed, grid), weight_scale, bias, scale_out)
