"""Hadamard matrices by construction: Sylvester doubling and Paley's two constructions (no tables).

Paley, "On orthogonal matrices" (1933): for a prime q, ``q + 1`` (q = 3 mod 4) and ``2 (q + 1)`` (q = 1 mod 4)
are orders of Hadamard matrices. With doubling these give 12, 20, 28, 36, 44, 60, … times powers of two.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ssmquant.errors import InputError

__all__ = ["base_order", "check_size", "matrix"]

_LARGEST_BASE = 300


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _jacobsthal(q: int) -> Tensor:
    """Return Q with ``Q[i, j] = chi(i - j)``, chi the quadratic character modulo the prime q; ``[q, q]`` float64."""
    chi = -torch.ones(q, dtype=torch.float64)
    chi[torch.arange(1, q) ** 2 % q] = 1.0
    chi[0] = 0.0
    index = torch.arange(q)
    return chi[(index[:, None] - index[None, :]) % q]


def _bordered(q: int, sign: float) -> Tensor:
    """Return ``[[0, 1], [sign * 1, Q]]``: skew for sign -1, symmetric for sign 1; ``[q + 1, q + 1]``."""
    s = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    s[0, 1:] = 1.0
    s[1:, 0] = sign
    s[1:, 1:] = _jacobsthal(q)
    return s


def _paley(m: int) -> Tensor | None:
    """Return a Hadamard matrix of order m by one of Paley's constructions, or None."""
    if _is_prime(m - 1) and (m - 1) % 4 == 3:
        return _bordered(m - 1, -1.0) + torch.eye(m, dtype=torch.float64)
    q = m // 2 - 1
    if m % 2 == 0 and _is_prime(q) and q % 4 == 1:
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_bordered(q, 1.0), plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), minus)
    return None


@cache
def base_order(n: int) -> int | None:
    """Return the m of ``n = 2**k * m`` whose matrix is dense: 1, or the smallest of Paley's orders."""
    if n < 1:
        return None
    odd = n // (n & -n)
    if odd == 1:
        return 1
    m = odd * 4  # orders above 2 are multiples of four
    while n % m == 0 and m <= _LARGEST_BASE:
        if _paley(m) is not None:
            return m
        m *= 2
    return None


def check_size(n: int) -> None:
    """Raise `InputError` unless a transform of size n is known; names the nearest sizes that are."""
    if base_order(n) is None:
        below = next((s for s in range(n - 1, 0, -1) if base_order(s)), 1)
        above = next(s for s in range(n + 1, 2 * n + 2) if base_order(s))
        raise InputError(
            f"hadamard: no transform of size {n} (known: 2^k * m with m = 1, 12, 20, 28, 36, 44, …); "
            f"nearest sizes {below} and {above}; leave the Hadamard transform out for this model"
        )


@cache
def matrix(n: int) -> Tensor:
    """Return the base matrix with entries +1 and -1, ``[n, n]`` float64, for n = 1 or one of Paley's orders."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    found = _paley(n)
    if found is None:
        raise InputError(f"hadamard: {n} is no order of Paley's constructions over a prime")
    return found
