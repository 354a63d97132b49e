"""Exact reference of the causal depthwise convolution with SiLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from ssmquant import numerics

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return ``silu(conv(x) + bias)`` and the state after it.

    With int8 operands the sum over the taps is an exact integer; then one product by ``x_scale *
    weight_scale``, the bias, SiLU, all float32. Operands without a scale are floats and the sum is theirs.

    Args:
        x: int8, float32 or float64 ``[B, L, C]``, L >= 1.
        x_scale: float32 ``[1]`` or ``[C]``, None for a float x.
        weight: int8, float16 or float of x's dtype ``[C, d_conv]``; the last tap meets the newest token.
        weight_scale: float32 ``[1]`` or ``[C]``, None for a float weight.
        bias: float ``[C]``.
        state: the ``d_conv`` newest inputs before x, ``[B, C, d_conv]``, dtype of x; zeros at the start.
        scale_out: float32 ``[1]`` or ``[C]``; None for float results.

    Returns:
        float or int8 ``[B, L, C]``, and the new state (a new tensor).
    """
    length, taps = x.shape[1], weight.shape[1]
    history = torch.cat([state.transpose(1, 2), x], dim=1)  # [B, d_conv + L, C]
    integer = x_scale is not None and weight_scale is not None
    # Codes as float32: four products of at most 127 * 127 add up exactly, in any order.
    inputs = history.float() if integer else numerics.dequantize(history, x_scale)
    kernel = weight.float() if integer else numerics.dequantize(weight, _per_row(weight_scale))
    y = inputs[:, 1 : 1 + length] * kernel[:, 0]
    for tap in range(1, taps):
        y = y + inputs[:, 1 + tap : 1 + tap + length] * kernel[:, tap]
    if x_scale is not None and weight_scale is not None:
        y = y * (x_scale * weight_scale)
    if bias is not None:
        y = y + bias
    y = silu(y)
    new_state = history[:, -taps:].transpose(1, 2).contiguous()
    return (y if scale_out is None else numerics.quantize(y, scale_out)), new_state


def _per_row(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale[:, None]
