"""`selective_scan`: Mamba-1's scan over a sequence or one step (arXiv 2312.00752, section 3), int8 or float inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_codes_or_float, expect_dtype, expect_scale, expect_shape, expect_tokens
from ssmquant.ops.recurrent_state import check_state
from ssmquant.ops.registry import Op
from ssmquant.ops.selective_scan.reference import selective_scan as _reference

__all__ = ["selective_scan"]

_NAME = "selective_scan"


def _check(
    x: Tensor,
    x_scale: Tensor | None,
    dt: Tensor,
    dt_scale: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor | None,
    C: Tensor,
    C_scale: Tensor | None,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> None:
    expect_shape(_NAME, "x", x, (None, None, None))
    batch, length, channels = x.shape
    expect_tokens(_NAME, length)
    expect_shape(_NAME, "A", A, (channels, None))
    d_state = A.shape[1]
    expect_shape(_NAME, "dt", dt, x.shape)
    expect_shape(_NAME, "B", B, (batch, length, d_state))
    expect_shape(_NAME, "C", C, (batch, length, d_state))
    expect_dtype(_NAME, "A", A, torch.float32, torch.float64)
    expect_shape(_NAME, "state", state, (batch, channels, d_state))
    for name, vector in (("D", D), ("dt_bias", dt_bias)):
        expect_shape(_NAME, name, vector, (channels,))
        expect_dtype(_NAME, name, vector, A.dtype)
    for name, tensor, scale in (
        ("x", x, x_scale),
        ("dt", dt, dt_scale),
        ("B", B, B_scale),
        ("C", C, C_scale),
    ):
        expect_codes_or_float(_NAME, name, tensor, scale, A.dtype)
        expect_scale(_NAME, f"{name}_scale", scale, tensor.shape[-1])
    check_state(_NAME, state, state_scale, interval, A.dtype)


def _fake(
    x: Tensor,
    x_scale: Tensor | None,
    dt: Tensor,
    dt_scale: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor | None,
    C: Tensor,
    C_scale: Tensor | None,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=A.dtype), state.new_empty(state.shape)


selective_scan = Op(
    "selective_scan(Tensor x, Tensor? x_scale, Tensor dt, Tensor? dt_scale, Tensor A, Tensor B, Tensor? B_scale, "
    "Tensor C, Tensor? C_scale, Tensor D, Tensor dt_bias, Tensor state, Tensor? state_scale, int interval) "
    "-> (Tensor, Tensor)",
    check=_check,
    reference=_reference,
    fake=_fake,
)
