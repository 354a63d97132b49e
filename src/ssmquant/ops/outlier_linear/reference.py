"""Exact reference of the linear layer whose outlier columns are found at run time and stay in float16."""

from __future__ import annotations

from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.int8_linear.reference import int_matmul

__all__ = ["outlier_columns", "outlier_linear"]


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Return which columns have an outlier, bool ``[K]``.

    Args:
        x: float ``[..., K]``; taken in float16.
        threshold: magnitude from which an element is an outlier.
    """
    return _outliers(x.half(), threshold).reshape(-1, x.shape[-1]).any(dim=0)


def outlier_linear(
    x: Tensor,
    threshold: float,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    """Return the linear layer of float activations, quantised here but for columns with outliers.

    x is rounded to float16. A token's scale is that of its largest magnitude below the threshold (in whatever column,
    as in bitsandbytes); its codes in outlier columns are zero.
    ``y = float32(sum_k a[m, k] * w[n, k]) * (a_scale[m] * weight_scale[n]) + sum_{k in outliers} x[m, k] * w16[n, k]``
    with an exact integer sum, ``w16 = float16(w * weight_scale)`` and float32 sums of float16 products; then
    ``+ bias[n]``.

    Args:
        x: float ``[..., K]``.
        threshold: magnitude from which an element is an outlier, above 0.
        weight: int8 ``[N, K]``.
        weight_scale: float32 ``[1]`` or ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``; None for float32 results.

    Returns:
        float32 ``[..., N]``, or its int8 codes under ``scale_out``.
    """
    half = x.half()
    columns = outlier_columns(half, threshold)
    ordinary = half.masked_fill(_outliers(half, threshold), 0.0)
    scale = numerics.per_token_scale(ordinary)
    codes = numerics.quantize(ordinary, scale).masked_fill(columns, 0)
    y = int_matmul(codes, weight).float() * (scale * weight_scale)
    kept = numerics.dequantize(weight[:, columns], weight_scale[:, None]).half()
    y = y + half[..., columns].float() @ kept.float().T
    if bias is not None:
        y = y + bias
    return y if scale_out is None else numerics.quantize(y, scale_out)


def _outliers(half: Tensor, threshold: float) -> Tensor:
    return half.float().abs() >= threshold
