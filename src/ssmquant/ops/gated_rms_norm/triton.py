"""The gated norm on GPUs, with the transform and the quantisation of its result in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.gated_rms_norm import gated_rms_norm
from ssmquant.ops.hadamard.triton import emit, unsupported_rows, unsupported_size
from ssmquant.ops.registry import Kernel


def _run(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> Tensor:
    return emit(y, z, z_scale, weight, eps, group_size, hadamard, scale_out)


def _supports(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> str | None:
    if y.dtype != torch.float32:
        return f"gates float32, not {y.dtype}"
    return unsupported_size(y.shape[-1]) if hadamard else unsupported_rows(y.shape[-1])


gated_rms_norm.register(Kernel("triton", "cuda", _run, _supports))
