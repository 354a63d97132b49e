"""Steps of groups as integers times one scale a row: progressive group quantisation (QServe, arXiv 2405.04532)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.formats.int4_progressive import largest_multiplier

__all__ = ["integer_steps", "nearest_multiple"]

_BITS = 4


def integer_steps(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale, multipliers and zero points that spread the codes of each group over its range.

    The scale of a row is the smallest with which no group needs a larger multiplier than it may have, so that
    multipliers are as fine as they can be.

    Args:
        low: lower ends ``[N, groups]``.
        high: upper ends, same shape.

    Returns:
        float32 ``[N]``, uint8 ``[N, groups]`` and int8 ``[N, groups]``.
    """
    step, zero_point = numerics.scale_and_zero_point(low, high, _BITS)
    # Not below what has a reciprocal: see `numerics.scale_from_absmax`.
    unit = (step / largest_multiplier(zero_point)).amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return unit, nearest_multiple(step, unit[:, None], zero_point).to(torch.uint8), zero_point


def nearest_multiple(step: Tensor, unit: Tensor, zero_point: Tensor) -> Tensor:
    """Return the multiplier, of those that the zero point allows, that brings a unit nearest to a step."""
    return (step / unit).round().clamp(min=1).minimum(largest_multiplier(zero_point))
