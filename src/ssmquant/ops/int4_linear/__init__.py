"""`int4_linear`: int8 activations times int4 weights with a scale a group, float32 or int8 out."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_dtype, expect_linear, expect_packed
from ssmquant.ops.int4_linear.reference import int4_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["int4_linear"]

_NAME = "int4_linear"


def _check(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_linear(_NAME, x, x_scale, packed.shape[0], bias, scale_out)
    expect_packed(_NAME, x, packed, "weight_scale", weight_scale)
    expect_dtype(_NAME, "weight_scale", weight_scale, torch.float32)


def _fake(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    dtype = torch.float32 if scale_out is None else torch.int8
    return x.new_empty((*x.shape[:-1], packed.shape[0]), dtype=dtype)


int4_linear = Op(
    "int4_linear(Tensor x, Tensor x_scale, Tensor packed, Tensor weight_scale, Tensor? bias, "
    "Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
