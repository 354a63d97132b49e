"""`gate`: ``y * silu(z)`` with an optional Hadamard transform, float or int8 out (Mamba-1's output stage)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_codes_or_float, expect_dtype, expect_scale, expect_shape
from ssmquant.ops.gate.reference import gate as _reference
from ssmquant.ops.hadamard.matrix import check_size
from ssmquant.ops.registry import Op

__all__ = ["gate"]


def _check(y: Tensor, z: Tensor, z_scale: Tensor | None, hadamard: bool, scale_out: Tensor | None) -> None:
    expect_dtype("gate", "y", y, torch.float32, torch.float64)
    expect_shape("gate", "z", z, y.shape)
    expect_codes_or_float("gate", "z", z, z_scale, y.dtype)
    expect_scale("gate", "z_scale", z_scale, y.shape[-1])
    expect_scale("gate", "scale_out", scale_out, y.shape[-1])
    if hadamard:
        check_size(y.shape[-1])


def _fake(y: Tensor, z: Tensor, z_scale: Tensor | None, hadamard: bool, scale_out: Tensor | None) -> Tensor:
    return y.new_empty(y.shape, dtype=y.dtype if scale_out is None else torch.int8)


gate = Op(
    "gate(Tensor y, Tensor z, Tensor? z_scale, bool hadamard, Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
