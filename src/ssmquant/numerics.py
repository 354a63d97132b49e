"""The one place that rounds and clamps.

Symmetric integer codes in ``[-limit, limit]`` with ``limit = 2**(bits-1) - 1`` (127 for int8), round half to even,
float32 scales. Every reference op and every kernel is held to the functions here; none has a rounding of its own.

Example:
    >>> import torch
    >>> quantize(torch.tensor([0.5, -1.0]), torch.tensor([1.0 / 127]))
    tensor([  64, -127], dtype=torch.int8)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "code_limit",
    "dequantize",
    "dequantize_asymmetric",
    "per_token_scale",
    "quantize",
    "quantize_asymmetric",
    "round_clamp",
    "scale_and_zero_point",
    "scale_from_absmax",
]

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # subnormal numbers have no reciprocal, and GPUs flush them
_LARGEST_SCALE = 1.0 / _SMALLEST_SCALE  # 2**126; the reciprocal of anything above is subnormal


def code_limit(bits: int) -> int:
    """Return the largest code of a symmetric ``bits``-bit integer: 127 for 8, 7 for 4."""
    return (1 << (bits - 1)) - 1


def round_clamp(x: Tensor, bits: int = 8) -> Tensor:
    """Round half to even and clamp to the symmetric range.

    Args:
        x: float tensor of any shape, in units of one code.
        bits: width of the code, 2 to 8.

    Returns:
        int8 tensor of the same shape.
    """
    limit = code_limit(bits)
    return x.round().clamp_(-limit, limit).to(torch.int8)


def quantize(x: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Return the codes of ``x``: ``round_clamp(x * (1 / scale))``, both steps in float32.

    The reciprocal is rounded to float32 before the product, so that a kernel may keep it in place of the scale and
    multiply. For ``|x| <= limit * scale`` the round trip differs from ``x`` by at most ``scale / 2`` (up to float32).

    Args:
        x: float tensor ``[..., C]``.
        scale: float32, broadcastable to ``x``.
        bits: width of the code.

    Returns:
        int8 codes with the shape of ``x``.
    """
    return round_clamp(x.float() * (1.0 / scale), bits)


def dequantize(codes: Tensor, scale: Tensor | None) -> Tensor:
    """Return ``codes * scale`` in float32; a tensor without scale is a float already and returned as it is.

    Args:
        codes: int8 codes, or a float tensor when ``scale`` is None.
        scale: float32, broadcastable to ``codes``.
    """
    return codes if scale is None else codes.float() * scale


def scale_from_absmax(absmax: Tensor, bits: int = 8) -> Tensor:
    """Return the float32 scale whose largest code stands for ``absmax``.

    A range that was never seen to be other than zero gets the range 1: any scale codes zeros exactly, and a value that
    does turn up later is then clamped late instead of at once. Scale and reciprocal are normal float32 numbers; a range
    too small or too large for that gets the nearest scale that is.

    Args:
        absmax: largest magnitudes, any shape, non-negative.
        bits: width of the code.
    """
    absmax = absmax.double()
    scale = torch.where(absmax > 0, absmax, 1.0) / code_limit(bits)
    return scale.clamp(_SMALLEST_SCALE, _LARGEST_SCALE).float()


def scale_and_zero_point(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return float32 scale and int8 zero point that spread all ``2**bits`` codes over a range.

    A range that does not reach zero is widened to it, so that zero has a code; one of width zero gets the width 1.

    Args:
        low: lower ends, any shape.
        high: upper ends, same shape.
        bits: width of the code, 2 to 8; codes and zero points go from ``-2**(bits-1)`` to ``2**(bits-1) - 1``.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    width = torch.where(high > low, high - low, 1.0)
    scale = (width / ((1 << bits) - 1)).clamp(_SMALLEST_SCALE, _LARGEST_SCALE).float()
    half = 1 << (bits - 1)
    return scale, (low / -scale - half).round().clamp(-half, half - 1).to(torch.int8)


def quantize_asymmetric(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return the int8 codes of ``x``: ``round(x * (1 / scale)) + zero_point``, clamped to all ``2**bits`` codes.

    Args:
        x: float tensor.
        scale: float32, broadcastable to ``x``.
        zero_point: int8, shaped like ``scale``.
        bits: width of the code.
    """
    half = 1 << (bits - 1)
    return ((x.float() * (1.0 / scale)).round() + zero_point).clamp(-half, half - 1).to(torch.int8)


def dequantize_asymmetric(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``(codes - zero_point) * scale`` in float32; the difference is exact.

    Args:
        codes: int8 codes.
        scale: float32, broadcastable to ``codes``.
        zero_point: int8, shaped like ``scale``.
    """
    return (codes.float() - zero_point.float()) * scale


def per_token_scale(x: Tensor, bits: int = 8, clip: float = 1.0) -> Tensor:
    """Return the dynamic scale of each token (row) of ``x``: ``[..., C] -> [..., 1]`` float32.

    Args:
        x: float tensor.
        bits: width of the code.
        clip: share of the row's largest magnitude that the largest code stands for (their product in float64).
    """
    return scale_from_absmax(x.float().abs().amax(dim=-1, keepdim=True).double() * clip, bits)
