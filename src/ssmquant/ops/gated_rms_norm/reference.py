"""Exact reference of the gated RMS norm."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from ssmquant import numerics
from ssmquant.ops.gate.reference import emit
from ssmquant.ops.rms_norm.reference import normalize

__all__ = ["gated_rms_norm"]


def gated_rms_norm(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> Tensor:
    """Return ``rms_norm(y * silu(z)) * weight``, normalised in groups (arXiv 2405.21060, section 7).

    Args:
        y: float32 or float64 ``[..., C]``, output of the scan.
        z: int8 ``[..., C]``, or a float of y's dtype.
        z_scale: float32 ``[1]`` or ``[C]``, None for a float z.
        weight: gain ``[C]``, dtype of y.
        eps: added to the mean square.
        group_size: channels that share one mean square; ``C / ngroups``.
        hadamard: whether to apply the orthonormal Hadamard transform to the result.
        scale_out: float32 ``[1]`` or ``[C]``; None for float results.

    Returns:
        float ``[..., C]``, or its int8 codes under ``scale_out``.
    """
    gated = y * silu(numerics.dequantize(z, z_scale))
    grouped = normalize(gated.unflatten(-1, (-1, group_size)), eps)
    return emit(grouped.flatten(-2) * weight, hadamard, scale_out)
