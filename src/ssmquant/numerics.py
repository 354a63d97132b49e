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

__all__ = ["code_limit", "dequantize", "per_token_scale", "quantize", "round_clamp", "scale_from_absmax"]

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


def per_token_scale(x: Tensor, bits: int = 8) -> Tensor:
    """Return the dynamic scale of each token (row) of ``x``: ``[..., C] -> [..., 1]`` float32."""
    return scale_from_absmax(x.float().abs().amax(dim=-1, keepdim=True), bits)
