"""C++ kernel of the RMS norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel
from ssmquant.ops.rms_norm import rms_norm


def _supports(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> str | None:
    return None if weight.dtype == torch.float32 else f"x is {x.dtype}, at most float32 is supported"


def _rms_norm(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.float32 if scale_out is None else torch.int8)
    channels = x.shape[-1]
    native.rms_norm(
        x.float().contiguous().view(-1, channels),
        weight.contiguous(),
        eps,
        None if scale_out is None else 1.0 / scale_out,
        out.view(-1, channels),
    )
    return out


rms_norm.register(Kernel("cpu", "cpu", _rms_norm, _supports))
