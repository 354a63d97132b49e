"""Exact reference of the orthonormal Hadamard transform."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.hadamard.matrix import base_order, check_size, matrix

__all__ = ["hadamard"]


def hadamard(x: Tensor) -> Tensor:
    """Return ``x @ H.T / sqrt(n)`` with ``H = H_{2^k} (Sylvester) kron H_m (Paley)``.

    Butterflies over the power of two (additions only), one product by the small dense matrix, one scaling at the end.

    Args:
        x: float ``[..., n]``.

    Returns:
        the same shape and dtype.

    Raises:
        InputError: no Hadamard matrix of order n is known.
    """
    n = x.shape[-1]
    check_size(n)
    m = base_order(n) or 1
    y = x.reshape(*x.shape[:-1], n // m, m)
    width = 1
    while width < n // m:
        y = y.unflatten(-2, (-1, 2, width))  # [..., blocks, 2, width, m]
        low, high = y.select(-3, 0), y.select(-3, 1)
        y = torch.stack([low + high, low - high], dim=-3).flatten(-4, -2)
        width *= 2
    if m > 1:
        y = y @ matrix(m).to(y).T
    return y.reshape(x.shape) * float(n**-0.5)
