"""`int8_linear`: int8 activations times int8 weights, exact int32 sums, float32 epilogue, int8 or float32 out."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype, expect_scale, expect_shape
from ssmquant.ops.int8_linear.reference import int8_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["int8_linear"]

_NAME = "int8_linear"
_MAX_K = (2**31 - 1) // 127**2  # the int32 sum cannot overflow up to here


def _check(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_dtype(_NAME, "x", x, torch.int8)
    expect_dtype(_NAME, "weight", weight, torch.int8)
    expect_shape(_NAME, "weight", weight, (None, x.shape[-1]))
    expect_dtype(_NAME, "x_scale", x_scale, torch.float32)
    if tuple(x_scale.shape) not in ((1,), (*x.shape[:-1], 1)):
        raise InputError(
            f"{_NAME}: x_scale must have shape [1] (static) or {[*x.shape[:-1], 1]} (per token), "
            f"got {list(x_scale.shape)}; a scale a channel of K cannot leave the integer sum"
        )
    if weight.shape[1] > _MAX_K:
        raise InputError(f"{_NAME}: K = {weight.shape[1]} could overflow int32; at most {_MAX_K}")
    expect_scale(_NAME, "weight_scale", weight_scale, weight.shape[0])
    expect_scale(_NAME, "scale_out", scale_out, weight.shape[0])
    if bias is not None:
        expect_dtype(_NAME, "bias", bias, torch.float32)
        expect_shape(_NAME, "bias", bias, (weight.shape[0],))


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
