"""Exact reference of quantisation to int8."""

from __future__ import annotations

from torch import Tensor

from ssmquant import numerics

__all__ = ["quantize_per_token", "quantize_static"]


def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    """Return the codes of ``x`` under static scales.

    Args:
        x: float ``[..., C]``.
        scale: float32 ``[1]`` or ``[C]``.

    Returns:
        int8 ``[..., C]``.
    """
    return numerics.quantize(x, scale)


def quantize_per_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of ``x`` with one scale a token, found from the token itself.

    Args:
        x: float ``[..., C]``.
        bits: width of the codes, 2 to 8.

    Returns:
        int8 ``[..., C]`` and float32 ``[..., 1]``.
    """
    scale = numerics.per_token_scale(x, bits)
    return numerics.quantize(x, scale, bits), scale
