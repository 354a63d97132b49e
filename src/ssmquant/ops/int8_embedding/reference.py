"""Exact reference of the int8 embedding."""

from __future__ import annotations

from torch import Tensor

from ssmquant import numerics

__all__ = ["int8_embedding"]


def int8_embedding(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the dequantised rows of the table.

    Args:
        ids: int64 or int32 ``[...]``, each below V.
        weight: int8 ``[V, C]``.
        scale: float32 ``[1]`` or ``[V]``.

    Returns:
        float32 ``[..., C]``.
    """
    row_scale = scale if scale.shape[0] == 1 else scale[ids][..., None]
    return numerics.dequantize(weight[ids], row_scale)
