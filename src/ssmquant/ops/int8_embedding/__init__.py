"""`int8_embedding`: rows of an int8 table, one scale a row (token)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_dtype, expect_scale, expect_shape
from ssmquant.ops.int8_embedding.reference import int8_embedding as _reference
from ssmquant.ops.registry import Op

__all__ = ["int8_embedding"]

_NAME = "int8_embedding"


def _check(ids: Tensor, weight: Tensor, scale: Tensor) -> None:
    expect_dtype(_NAME, "ids", ids, torch.int64, torch.int32)
    expect_dtype(_NAME, "weight", weight, torch.int8)
    expect_shape(_NAME, "weight", weight, (None, None))
    expect_scale(_NAME, "scale", scale, weight.shape[0])


def _fake(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]), dtype=torch.float32)


int8_embedding = Op(
    "int8_embedding(Tensor ids, Tensor weight, Tensor scale) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
