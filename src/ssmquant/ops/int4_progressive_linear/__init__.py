"""`int4_progressive_linear`: int8 activations times int4 weights whose groups have integer steps, one exact sum."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_dtype, expect_int32_sum, expect_linear, expect_packed, expect_shape
from ssmquant.ops.int4_progressive_linear.reference import int4_progressive_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["int4_progressive_linear"]

_NAME = "int4_progressive_linear"


def _check(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_linear(_NAME, x, x_scale, packed.shape[0], bias, scale_out)
    expect_packed(_NAME, x, packed, "grid", grid)
    expect_int32_sum(_NAME, x.shape[-1])
    expect_dtype(_NAME, "grid", grid, torch.uint8)
    expect_dtype(_NAME, "weight_scale", weight_scale, torch.float32)
    expect_shape(_NAME, "weight_scale", weight_scale, (packed.shape[0],))


def _fake(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    dtype = torch.float32 if scale_out is None else torch.int8
    return x.new_empty((*x.shape[:-1], packed.shape[0]), dtype=dtype)


int4_progressive_linear = Op(
    "int4_progressive_linear(Tensor x, Tensor x_scale, Tensor packed, Tensor grid, Tensor weight_scale, "
    "Tensor? bias, Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
