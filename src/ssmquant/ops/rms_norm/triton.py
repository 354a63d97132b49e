"""The RMS norm on GPUs, with the quantisation of its result in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.hadamard.triton import emit, unsupported_rows
from ssmquant.ops.registry import Kernel
from ssmquant.ops.rms_norm import rms_norm


def _run(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> Tensor:
    return emit(x, None, None, weight, eps, x.shape[-1], False, scale_out)


def _supports(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> str | None:
    if x.dtype == torch.float64:
        return "norms floats of at most 32 bits, not torch.float64"
    return unsupported_rows(x.shape[-1])


rms_norm.register(Kernel("triton", "cuda", _run, _supports))
