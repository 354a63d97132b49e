"""`int4_linear`: int8 activations times int4 weights with a scale a group, float32 or int8 out."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype, expect_scale, expect_shape
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
    expect_dtype(_NAME, "x", x, torch.int8)
    expect_dtype(_NAME, "packed", packed, torch.uint8)
    columns, out_features = x.shape[-1], packed.shape[0]
    if columns % 2:
        raise InputError(f"{_NAME}: K = {columns} is odd, but a byte holds two codes; add a column of zeros")
    expect_shape(_NAME, "packed", packed, (None, columns // 2))
    expect_dtype(_NAME, "x_scale", x_scale, torch.float32)
    if tuple(x_scale.shape) not in ((1,), (*x.shape[:-1], 1)):
        raise InputError(
            f"{_NAME}: x_scale must have shape [1] (static) or {[*x.shape[:-1], 1]} (per token), "
            f"got {list(x_scale.shape)}; a scale a channel of K cannot leave the integer sum"
        )
    expect_dtype(_NAME, "weight_scale", weight_scale, torch.float32)
    expect_shape(_NAME, "weight_scale", weight_scale, (out_features, None))
    groups = weight_scale.shape[1]
    if not groups or columns % groups:
        raise InputError(
            f"{_NAME}: weight_scale has {groups} groups, which do not divide K = {columns}; "
            "it must be [N, K / group_size]"
        )
    expect_scale(_NAME, "scale_out", scale_out, out_features)
    if bias is not None:
        expect_dtype(_NAME, "bias", bias, torch.float32)
        expect_shape(_NAME, "bias", bias, (out_features,))


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
