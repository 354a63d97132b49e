"""`gated_rms_norm`: ``norm(y * silu(z))`` with an optional Hadamard transform, float or int8 out (Mamba-2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_codes_or_float, expect_dtype, expect_scale, expect_shape
from ssmquant.ops.gated_rms_norm.reference import gated_rms_norm as _reference
from ssmquant.ops.hadamard.matrix import check_size
from ssmquant.ops.registry import Op

__all__ = ["gated_rms_norm"]

_NAME = "gated_rms_norm"


def _check(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> None:
    channels = y.shape[-1]
    expect_dtype(_NAME, "y", y, torch.float32, torch.float64)
    expect_shape(_NAME, "z", z, y.shape)
    expect_codes_or_float(_NAME, "z", z, z_scale, y.dtype)
    expect_scale(_NAME, "z_scale", z_scale, channels)
    expect_scale(_NAME, "scale_out", scale_out, channels)
    expect_dtype(_NAME, "weight", weight, y.dtype)
    expect_shape(_NAME, "weight", weight, (channels,))
    if channels % group_size:
        raise InputError(f"{_NAME}: group_size {group_size} does not divide {channels} channels")
    if hadamard:
        check_size(channels)


def _fake(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> Tensor:
    return y.new_empty(y.shape, dtype=y.dtype if scale_out is None else torch.int8)


gated_rms_norm = Op(
    "gated_rms_norm(Tensor y, Tensor z, Tensor? z_scale, Tensor weight, float eps, int group_size, bool hadamard, "
    "Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
