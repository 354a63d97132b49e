"""`ChannelHistogram`: counts of each channel's magnitudes in fixed bins, for least-squares ranges of parts of a tensor.

Bins are coarser than `Histogram`'s, as there is a row of them for every channel: a bin is the exponent and the leading
3 bits of the mantissa (8 bins an octave, 12 % wide at most), over 32 octaves. What is smaller or larger is in the
outermost bins. Only the tail beyond a range is taken from the bins; what is within costs a twelfth of a squared step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from ssmquant.numerics import code_limit
from ssmquant.observers.base import Observer

__all__ = ["ChannelHistogram"]

_SHIFT = 23 - 3  # three bits of the mantissa
_BINS = 32 << 3
_FIRST = (127 - 20) << 3  # the bin that begins at 2**-20


class ChannelHistogram(Observer):
    """Counts of magnitudes in each channel.

    Attributes:
        counts: int64 ``[C, bins]``; None before the first update.
    """

    name: ClassVar[str] = "channel-histogram"

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = counts

    def update(self, x: Tensor) -> None:
        """Observe ``[tokens, C]``."""
        bits = x.detach().float().abs().contiguous().view(torch.int32).cpu() >> _SHIFT
        bins = (bits - _FIRST).clamp(0, _BINS - 1)
        channels = bins.shape[-1]
        places = (bins + torch.arange(channels, dtype=torch.int32) * _BINS).flatten()
        seen = torch.bincount(places, minlength=channels * _BINS).view(channels, _BINS)
        self.counts = seen if self.counts is None else self.counts + seen

    def merge(self, other: Self) -> Self:
        """Return the sum of both counts."""
        if self.counts is None or other.counts is None:
            return type(self)(other.counts if self.counts is None else self.counts)
        return type(self)(self.counts + other.counts)

    def state(self) -> dict[str, Tensor]:
        """Return ``counts``."""
        return {} if self.counts is None else {"counts": self.counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer with these ``counts``."""
        return cls(state.get("counts"))

    def least_squares(self, absmax: Tensor, group: Tensor, bits: int) -> Tensor:
        """Return the range of each group, up to its ``absmax``, of least mean squared error (a search of 100 ranges).

        Args:
            absmax: largest magnitude of each group, float ``[groups]``.
            group: group of each channel, int ``[C]``.
            bits: width of the codes.

        Returns:
            float64 ``[groups]``.
        """
        assert self.counts is not None, "a site that was never observed has no ranges"
        counts = torch.zeros(len(absmax), _BINS, dtype=torch.int64).index_add_(0, group.long(), self.counts)
        edges = (torch.arange(_FIRST, _FIRST + _BINS + 1, dtype=torch.int64) << _SHIFT).to(torch.int32)
        low, high = edges[:-1].view(torch.float32).double(), edges[1:].view(torch.float32).double()
        values = torch.minimum((low + high) / 2, absmax.double()[:, None])[:, None]  # [groups, 1, bins]
        ranges = absmax.double()[:, None] * torch.arange(1, 101, dtype=torch.float64) / 100  # [groups, 100]
        rounding = (ranges / code_limit(bits)).square()[..., None] / 12
        inside = torch.minimum(values.square(), rounding)  # what is smaller than its error is nearest to zero
        error = torch.where(values > ranges[..., None], (values - ranges[..., None]).square(), inside)
        best = (error * counts[:, None]).sum(dim=-1).argmin(dim=1)
        return ranges.gather(1, best[:, None])[:, 0]
