"""Round to nearest: the codes of a weight under the absmax of each row, or of the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["round_to_nearest"]


def round_to_nearest(weight: Tensor, scheme: TensorScheme) -> dict[str, Tensor]:
    """Return ``codes`` int8 ``[N, K]`` and ``scale`` float32 ``[N]`` (per-channel) or ``[1]`` (per-tensor).

    Args:
        weight: float ``[N, K]``.
        scheme: a symmetric integer scheme.
    """
    magnitude = weight.abs()
    match scheme.granularity:
        case Granularity.PER_TENSOR:
            absmax = magnitude.amax().reshape(1)
        case Granularity.PER_CHANNEL:
            absmax = magnitude.amax(dim=1)
        case _:
            raise RecipeError(
                f"round to nearest has no {scheme.granularity} scales; use per-channel or per-tensor"
            )
    scale = numerics.scale_from_absmax(absmax, scheme.bits)
    return {"codes": numerics.quantize(weight, scale[:, None].to(torch.float32), scheme.bits), "scale": scale}
