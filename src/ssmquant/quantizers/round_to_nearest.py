"""Round to nearest: the codes of a weight under the absmax of its whole, of each row, or of each group along K."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError, SsmquantError
from ssmquant.formats import Codes
from ssmquant.quantizers.progressive import integer_steps
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["round_to_nearest", "weight_scale"]


def weight_scale(weight: Tensor, scheme: TensorScheme) -> Tensor:
    """Return the absmax scales of a weight, float32: ``[1]``, ``[N]`` or ``[N, groups]``.

    Args:
        weight: float ``[N, K]``.
        scheme: a symmetric integer scheme: per-tensor, per-channel or per-group.

    Raises:
        RecipeError: the scheme has no meaning for a weight.
        SsmquantError: the weight has NaN or infinity.
    """
    magnitude = weight.abs()
    match scheme.granularity:
        case Granularity.PER_TENSOR:
            absmax = magnitude.amax().reshape(1)
        case Granularity.PER_CHANNEL:
            absmax = magnitude.amax(dim=1)
        case Granularity.PER_GROUP if scheme.group_size:
            absmax = magnitude.unflatten(1, (-1, scheme.group_size)).amax(dim=2)
        case _:
            raise RecipeError(
                f"weights have no {scheme.granularity} scales; use per-tensor, per-channel or per-group"
            )
    if not torch.isfinite(absmax).all():
        raise SsmquantError("a weight with NaN or infinity has no codes; check the float checkpoint")
    clip = scheme.mixed.weight_clip if scheme.mixed else 1.0
    return numerics.scale_from_absmax(absmax.double() * clip, scheme.bits)


def round_to_nearest(weight: Tensor, scheme: TensorScheme) -> Codes:
    """Return the codes nearest to a weight.

    Args:
        weight: float ``[N, K]``.
        scheme: an integer scheme: per-tensor, per-channel or per-group, or per-group with zero points.
    """
    if not scheme.symmetric:
        return _with_zero_points(weight, scheme)
    scale = weight_scale(weight, scheme)
    groups = scale.shape[1] if scale.dim() == 2 else 1
    rows = scale[..., None] if scale.dim() == 2 else scale.view(-1, 1, 1)
    codes = numerics.quantize(weight.unflatten(1, (groups, -1)), rows, scheme.bits)
    return Codes(codes.flatten(1), scale)


def _with_zero_points(weight: Tensor, scheme: TensorScheme) -> Codes:
    grouped = weight.unflatten(1, (-1, scheme.group_size or weight.shape[1]))
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)
    if scheme.scale_dtype == "uint8":
        unit, multiplier, zero_point = integer_steps(low, high)
        found = Codes(weight, unit, zero_point=zero_point, multiplier=multiplier)
    else:
        scale, zero_point = numerics.scale_and_zero_point(low, high, scheme.bits)
        found = Codes(weight, scale, zero_point=zero_point)
    steps = found.steps[..., None]
    codes = numerics.quantize_asymmetric(grouped, steps, zero_point[..., None], scheme.bits)
    return found._replace(codes=codes.flatten(1))
