"""`int4_embedding`: rows of an int4 table, two codes a byte, a scale a group of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype, expect_shape
from ssmquant.ops.int4_embedding.reference import int4_embedding as _reference
from ssmquant.ops.registry import Op

__all__ = ["int4_embedding"]

_NAME = "int4_embedding"


def _check(ids: Tensor, packed: Tensor, scale: Tensor) -> None:
    expect_dtype(_NAME, "ids", ids, torch.int64, torch.int32)
    expect_dtype(_NAME, "packed", packed, torch.uint8)
    expect_shape(_NAME, "packed", packed, (None, None))
    expect_dtype(_NAME, "scale", scale, torch.float32)
    expect_shape(_NAME, "scale", scale, (packed.shape[0], None))
    if not scale.shape[1] or 2 * packed.shape[1] % scale.shape[1]:
        raise InputError(
            f"{_NAME}: {scale.shape[1]} groups do not divide rows of {2 * packed.shape[1]} codes"
        )


def _fake(ids: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    return packed.new_empty((*ids.shape, 2 * packed.shape[1]), dtype=torch.float32)


int4_embedding = Op(
    "int4_embedding(Tensor ids, Tensor packed, Tensor scale) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
