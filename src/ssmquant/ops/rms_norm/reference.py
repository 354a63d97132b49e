"""Exact reference of the RMS norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics

__all__ = ["normalize", "rms_norm"]


def normalize(x: Tensor, eps: float) -> Tensor:
    """Return ``x / sqrt(mean(x**2) + eps)`` over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> Tensor:
    """Return ``normalize(x) * weight`` in float32 (float64 for float64 inputs).

    Args:
        x: float ``[..., C]``.
        weight: gain ``[C]``, float32 (float64 for a float64 x).
        eps: added to the mean square.
        scale_out: float32 ``[1]`` or ``[C]``; None for float results.

    Returns:
        float ``[..., C]``, or its int8 codes under ``scale_out``.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    y = normalize(x, eps) * weight
    return y if scale_out is None else numerics.quantize(y, scale_out)
