"""`ssd`: Mamba-2's scan (state-space duality) over a sequence or one step, int8 or float inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_codes_or_float, expect_dtype, expect_scale, expect_shape, expect_tokens
from ssmquant.ops.recurrent_state import check_state
from ssmquant.ops.registry import Op
from ssmquant.ops.ssd.reference import ssd as _reference

__all__ = ["ssd"]

_NAME = "ssd"


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
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> None:
    expect_shape(_NAME, "x", x, (None, None, None, None))
    batch, length, heads, headdim = x.shape
    expect_tokens(_NAME, length)
    expect_shape(_NAME, "B", B, (batch, length, None, None))
    expect_shape(_NAME, "C", C, B.shape)
    groups, d_state = B.shape[2:]
    if heads % groups:
        raise InputError(f"{_NAME}: {groups} groups of B and C do not divide {heads} heads")
    expect_shape(_NAME, "dt", dt, (batch, length, heads))
    expect_dtype(_NAME, "A", A, torch.float32, torch.float64)
    expect_shape(_NAME, "state", state, (batch, heads, headdim, d_state))
    for name, vector in (("A", A), ("D", D), ("dt_bias", dt_bias)):
        expect_shape(_NAME, name, vector, (heads,))
        expect_dtype(_NAME, name, vector, A.dtype)
    for name, tensor, scale, channels in (
        ("x", x, x_scale, heads * headdim),
        ("dt", dt, dt_scale, heads),
        ("B", B, B_scale, groups * d_state),
        ("C", C, C_scale, groups * d_state),
    ):
        expect_codes_or_float(_NAME, name, tensor, scale, A.dtype)
        expect_scale(_NAME, f"{name}_scale", scale, channels)
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
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=A.dtype), state.new_empty(state.shape)


ssd = Op(
    "ssd(Tensor x, Tensor? x_scale, Tensor dt, Tensor? dt_scale, Tensor A, Tensor B, Tensor? B_scale, Tensor C, "
    "Tensor? C_scale, Tensor D, Tensor dt_bias, float dt_min, float dt_max, Tensor state, Tensor? state_scale, "
    "int interval) -> (Tensor, Tensor)",
    check=_check,
    reference=_reference,
    fake=_fake,
)
