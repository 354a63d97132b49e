"""Exact reference of the gate."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from ssmquant import numerics
from ssmquant.ops.hadamard.reference import hadamard as transform

__all__ = ["emit", "gate"]


def emit(y: Tensor, hadamard: bool, scale_out: Tensor | None) -> Tensor:
    """Return the output stage's result: transformed if asked for, then quantised if asked for."""
    if hadamard:
        y = transform(y)
    return y if scale_out is None else numerics.quantize(y, scale_out)


def gate(y: Tensor, z: Tensor, z_scale: Tensor | None, hadamard: bool, scale_out: Tensor | None) -> Tensor:
    """Return ``y * silu(z)``, Hadamard-transformed over the channels if asked for.

    Args:
        y: float32 or float64 ``[..., C]``, output of the scan.
        z: int8 ``[..., C]``, or a float of y's dtype.
        z_scale: float32 ``[1]`` or ``[C]``, None for a float z.
        hadamard: whether to apply the orthonormal Hadamard transform.
        scale_out: float32 ``[1]`` or ``[C]``; None for float results.

    Returns:
        float ``[..., C]``, or its int8 codes under ``scale_out``.
    """
    return emit(y * silu(numerics.dequantize(z, z_scale)), hadamard, scale_out)
