"""`causal_conv1d`: depthwise causal convolution with fused SiLU over a sequence or one step."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d.reference import causal_conv1d as _reference
from ssmquant.ops.checks import expect_codes_or_float, expect_dtype, expect_scale, expect_shape, expect_tokens
from ssmquant.ops.registry import Op

__all__ = ["causal_conv1d"]

_NAME = "causal_conv1d"


def _compute_dtype(x: Tensor, x_scale: Tensor | None) -> torch.dtype:
    return x.dtype if x_scale is None else torch.float32


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
    batch, length, channels = x.shape
    expect_tokens(_NAME, length)
    expect_shape(_NAME, "weight", weight, (channels, None))
    expect_shape(_NAME, "state", state, (batch, channels, weight.shape[1]))
    expect_dtype(_NAME, "state", state, x.dtype)
    expect_codes_or_float(_NAME, "x", x, x_scale, torch.float32, torch.float64)
    # A weight may be at rest in a smaller float than the arithmetic's.
    floats = (torch.float16, _compute_dtype(x, x_scale))
    expect_codes_or_float(_NAME, "weight", weight, weight_scale, *floats)
    for name, scale in (("x_scale", x_scale), ("weight_scale", weight_scale), ("scale_out", scale_out)):
        expect_scale(_NAME, name, scale, channels)
    if bias is not None:
        expect_dtype(_NAME, "bias", bias, *floats)
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
    dtype = _compute_dtype(x, x_scale) if scale_out is None else torch.int8
    return x.new_empty(x.shape, dtype=dtype), state.new_empty(state.shape)


causal_conv1d = Op(
    "causal_conv1d(Tensor x, Tensor? x_scale, Tensor weight, Tensor? weight_scale, Tensor? bias, Tensor state, "
    "Tensor? scale_out) -> (Tensor, Tensor)",
    check=_check,
    reference=_reference,
    fake=_fake,
)
