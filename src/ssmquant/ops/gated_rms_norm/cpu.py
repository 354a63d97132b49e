"""C++ kernel of the gated RMS norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.gated_rms_norm import gated_rms_norm
from ssmquant.ops.hadamard.cpu import base_of
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel


def _supports(y: Tensor, *args: object) -> str | None:
    return None if y.dtype == torch.float32 else f"y is {y.dtype}, float32 is supported"


def _gated_rms_norm(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> Tensor:
    out = torch.empty(y.shape, dtype=torch.float32 if scale_out is None else torch.int8)
    channels = y.shape[-1]
    native.gated_rms_norm(
        y.contiguous().view(-1, channels),
        z.contiguous().view(-1, channels),
        None if z_scale is None else z_scale.contiguous(),
        weight.contiguous(),
        eps,
        group_size,
        base_of(channels) if hadamard else None,
        None if scale_out is None else 1.0 / scale_out,
        out.view(-1, channels),
    )
    return out


gated_rms_norm.register(Kernel("cpu", "cpu", _gated_rms_norm, _supports))
