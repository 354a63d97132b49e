"""Exact reference of the int4 embedding."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding

from ssmquant import numerics
from ssmquant.ops.int4_linear.packing import unpack_int4

__all__ = ["int4_embedding"]


def int4_embedding(ids: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Return the dequantised rows of the table.

    Args:
        ids: int64 or int32 ``[...]``, each in [0, V).
        packed: uint8 ``[V, C / 2]``, see `int4_linear.packing`.
        scale: float32 ``[V, groups]``; a group is ``C / groups`` neighbours.

    Returns:
        float32 ``[..., C]``.
    """
    codes = unpack_int4(embedding(ids, packed))
    groups = codes.unflatten(-1, (scale.shape[1], -1))
    return numerics.dequantize(groups, embedding(ids, scale)[..., None]).flatten(-2)
