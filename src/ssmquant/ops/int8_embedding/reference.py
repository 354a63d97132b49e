"""Exact reference of the int8 embedding."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding

from ssmquant import numerics

__all__ = ["int8_embedding"]


def int8_embedding(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the dequantised rows of the table.

    Args:
        ids: int64 or int32 ``[...]``, each in [0, V).
        weight: int8 ``[V, C]``.
        scale: float32 ``[1]`` or ``[V]``.

    Returns:
        float32 ``[..., C]``.
    """
    # Not weight[ids], which would take a negative id for a row counted from the end.
    row_scale = scale if scale.shape[0] == 1 else embedding(ids, scale[:, None])
    return numerics.dequantize(embedding(ids, weight), row_scale)
