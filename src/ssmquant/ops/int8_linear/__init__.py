"""`int8_linear`: int8 activations times int8 weights, exact int32 sums, float32 epilogue, int8 or float32 out."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_dtype, expect_int32_sum, expect_linear, expect_scale, expect_shape
from ssmquant.ops.int8_linear.reference import int8_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["int8_linear"]

_NAME = "int8_linear"


def _check(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_linear(_NAME, x, x_scale, weight.shape[0], bias, scale_out)
    expect_dtype(_NAME, "weight", weight, torch.int8)
    expect_shape(_NAME, "weight", weight, (None, x.shape[-1]))
    expect_int32_sum(_NAME, x.shape[-1])
    expect_scale(_NAME, "weight_scale", weight_scale, weight.shape[0])


def _fake(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    dtype = torch.float32 if scale_out is None else torch.int8
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


int8_linear = Op(
    "int8_linear(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, "
    "Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
