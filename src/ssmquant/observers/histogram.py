"""`Histogram`: counts of magnitudes in fixed bins, for percentile and least-squares ranges.

A bin is the leading 14 bits of the magnitude's float32 representation: 64 bins an octave (1.6 % wide at
most), the same bins
for every tensor. So counting is exact, needs no logarithm and no range beforehand, and merging is addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from ssmquant.numerics import code_limit
from ssmquant.observers.base import Observer

__all__ = ["Histogram"]

_SHIFT = 23 - 6  # six bits of the mantissa
_BINS = 1 << (31 - _SHIFT)


class Histogram(Observer):
    """Counts of magnitudes over the whole tensor.

    Attributes:
        counts: int64 ``[bins]``.
    """

    name: ClassVar[str] = "histogram"

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64) if counts is None else counts

    def update(self, x: Tensor) -> None:
        """Observe ``[tokens, …channels]``."""
        bits = x.detach().float().abs().contiguous().view(torch.int32) >> _SHIFT
        self.counts = self.counts + torch.bincount(bits.flatten().cpu(), minlength=_BINS)

    def merge(self, other: Self) -> Self:
        """Return the sum of both counts."""
        return type(self)(self.counts + other.counts)

    def state(self) -> dict[str, Tensor]:
        """Return ``counts``."""
        return {"counts": self.counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer with these ``counts``."""
        return cls(state.get("counts"))

    @staticmethod
    def edges() -> Tensor:
        """Return the upper edge of every bin, float64 ``[bins]``."""
        upper = (torch.arange(1, _BINS + 1, dtype=torch.int64) << _SHIFT).clamp(max=0x7F7FFFFF)
        return upper.to(torch.int32).view(torch.float32).double()

    def percentile(self, percentage: float) -> float:
        """Return a magnitude that at least ``percentage`` percent of the observed ones do not exceed.

        It is the upper edge of the bin where the percentage is reached: at most 1.6 % above the exact percentile.
        """
        total = int(self.counts.sum())
        rank = torch.tensor(total * percentage / 100.0, dtype=torch.float64)
        reached = int(torch.searchsorted(self.counts.cumsum(0).double(), rank))
        return float(self.edges()[min(reached, _BINS - 1)])

    def least_squares(self, absmax: float, bits: int) -> float:
        """Return the range up to ``absmax`` whose codes have the least mean squared error (a search of 100 ranges)."""
        upper = self.edges()
        middle = (torch.cat([upper.new_zeros(1), upper[:-1]]) + upper) / 2
        seen = self.counts > 0
        values, weight = middle[seen].clamp(max=absmax), self.counts[seen].double()
        limit = code_limit(bits)
        ranges = absmax * torch.arange(1, 101, dtype=torch.float64) / 100
        scale = (ranges / limit)[:, None]
        codes = (values / scale).round().clamp(max=limit)
        error = ((codes * scale - values) ** 2 * weight).sum(dim=1)
        return float(ranges[error.argmin()])
