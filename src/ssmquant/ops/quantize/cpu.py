"""C++ kernels of quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.native import native
from ssmquant.ops.quantize import quantize_per_token, quantize_static
from ssmquant.ops.registry import Kernel


def _supports(x: Tensor, *args: object) -> str | None:
    return None if x.dtype == torch.float32 else f"x is {x.dtype}, float32 is supported"


def _quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    codes = torch.empty(x.shape, dtype=torch.int8)
    channels = x.shape[-1]
    native.quantize(x.contiguous().view(-1, channels), 1.0 / scale, codes.view(-1, channels))
    return codes


def _quantize_per_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32)
    channels = x.shape[-1]
    native.quantize_per_token(
        x.contiguous().view(-1, channels), bits, codes.view(-1, channels), scale.flatten()
    )
    return codes, scale


quantize_static.register(Kernel("cpu", "cpu", _quantize_static, _supports))
quantize_per_token.register(Kernel("cpu", "cpu", _quantize_per_token, _supports))
