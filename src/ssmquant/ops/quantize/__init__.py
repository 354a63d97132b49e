"""`quantize_static` and `quantize_per_token`: float to int8 codes (numerics contract, design of static and dynamic)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_float, expect_scale
from ssmquant.ops.quantize import reference
from ssmquant.ops.registry import Op

__all__ = ["quantize_per_token", "quantize_static"]


def _check_static(x: Tensor, scale: Tensor) -> None:
    expect_float("quantize_static", "x", x)
    expect_scale("quantize_static", "scale", scale, x.shape[-1])


def _check_per_token(x: Tensor, bits: int) -> None:
    expect_float("quantize_per_token", "x", x)
    if not 2 <= bits <= 8:
        raise InputError(f"quantize_per_token: bits must be 2 to 8, got {bits}")


def _fake_per_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


quantize_static = Op(
    "quantize_static(Tensor x, Tensor scale) -> Tensor",
    check=_check_static,
    reference=reference.quantize_static,
    fake=lambda x, scale: x.new_empty(x.shape, dtype=torch.int8),
)
quantize_per_token = Op(
    "quantize_per_token(Tensor x, int bits) -> (Tensor, Tensor)",
    check=_check_per_token,
    reference=reference.quantize_per_token,
    fake=_fake_per_token,
)
