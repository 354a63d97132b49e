"""`causal_conv1d`: depthwise causal convolution with fused SiLU over a sequence or one step."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d.reference import causal_conv1d as _reference
from ssmquant.ops.checks import expect_codes_or_float, expect_dtype, expect_scale, expect_shape
from ssmquant.ops.registry import Op

__all__ = ["causal_conv1d"]

_NAME = "causal_conv1d"


def _check(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> None:
    expect_shape(_NAME, "x", x, (None, None, None))
    batch, _, channels = x.shape
    expect_shape(_NAME, "weight", weight, (channels, None))
    expect_shape(_NAME, "state", state, (batch, channels, weight.shape[1]))
    expect_dtype(_NAME, "state", state, x.dtype)
    expect_codes_or_float(_NAME, "x", x, x_scale)
    expect_codes_or_float(_NAME, "weight", weight, weight_scale)
    for name, scale in (("x_scale", x_scale), ("weight_scale", weight_scale), ("scale_out", scale_out)):
        expect_scale(_NAME, name, scale, channels)
    if bias is not None:
        expect_shape(_NAME, "bias", bias, (channels,))


def _fake(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = torch.int8 if scale_out is not None else (torch.float32 if x_scale is not None else x.dtype)
    return torch.empty_like(x, dtype=dtype), torch.empty_like(state)


causal_conv1d = Op(
    "causal_conv1d(Tensor x, Tensor? x_scale, Tensor weight, Tensor? weight_scale, Tensor? bias, Tensor state, "
    "Tensor? scale_out) -> (Tensor, Tensor)",
    check=_check,
    reference=_reference,
    fake=_fake,
)
