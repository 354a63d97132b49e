"""C++ kernels of quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.native import native
from ssmquant.ops.quantize import quantize_static
from ssmquant.ops.registry import Kernel


def _supports(x: Tensor, scale: Tensor) -> str | None:
    return None if x.dtype == torch.float32 else f"x is {x.dtype}, float32 is supported"


def _quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    codes = torch.empty(x.shape, dtype=torch.int8)
    native.quantize(x.contiguous().flatten(0, -2), 1.0 / scale, codes.flatten(0, -2))
    return codes


quantize_static.register(Kernel("cpu", "cpu", _quantize_static, _supports))
