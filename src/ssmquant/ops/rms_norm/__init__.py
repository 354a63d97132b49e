"""`rms_norm`: root-mean-square norm, float32 inside, float or int8 out."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.checks import expect_dtype, expect_float, expect_scale, expect_shape
from ssmquant.ops.registry import Op
from ssmquant.ops.rms_norm.reference import rms_norm as _reference

__all__ = ["rms_norm"]


def _check(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> None:
    expect_float("rms_norm", "x", x)
    expect_dtype("rms_norm", "weight", weight, torch.promote_types(x.dtype, torch.float32))
    expect_shape("rms_norm", "weight", weight, (x.shape[-1],))
    expect_scale("rms_norm", "scale_out", scale_out, x.shape[-1])


def _fake(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> Tensor:
    dtype = torch.int8 if scale_out is not None else torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape, dtype=dtype)


rms_norm = Op(
    "rms_norm(Tensor x, Tensor weight, float eps, Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
