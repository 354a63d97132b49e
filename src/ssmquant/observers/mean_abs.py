"""`MeanAbs`: the mean magnitude of each channel, for AWQ.

Every magnitude is rounded to a fixed-point number (2^-24) and added as int64: sums are exact, so tokens may come in any
order and any batches, and shards merge to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers.base import Observer

__all__ = ["MeanAbs"]

_UNIT = 2.0**-24
_LARGEST = 2.0**62


class MeanAbs(Observer):
    """Mean magnitude a channel.

    Attributes:
        total: int64 ``[…channels]``, sum of magnitudes in units of 2^-24; None before the first update.
        count: tokens observed.
    """

    name: ClassVar[str] = "mean_abs"

    def __init__(self, total: Tensor | None = None, count: int = 0) -> None:
        self.total = total
        self.count = count

    def update(self, x: Tensor) -> None:
        """Observe ``[tokens, …channels]``.

        Raises:
            SsmquantError: the sum is not finite, or too large for 64 bits.
        """
        magnitude = x.detach().abs().double() / _UNIT
        largest = magnitude.sum(dim=0) + (0 if self.total is None else self.total)
        if not bool((largest < _LARGEST).all()):
            raise SsmquantError(
                f"mean_abs: sums of magnitudes reach {float(largest.max() * _UNIT):.3g}, beyond what 64-bit sums hold; "
                "the float model's activations are out of range on this text"
            )
        added = magnitude.round().to(torch.int64).sum(dim=0)
        self.total = added if self.total is None else self.total + added
        self.count += len(x)

    def merge(self, other: Self) -> Self:
        """Return the sums of both."""
        if self.total is None or other.total is None:
            return type(self)(other.total if self.total is None else self.total, self.count + other.count)
        return type(self)(self.total + other.total, self.count + other.count)

    def state(self) -> dict[str, Tensor]:
        """Return ``total`` and ``count``, int64."""
        return {} if self.total is None else {"total": self.total, "count": torch.tensor(self.count)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer with these sums."""
        return cls(state["total"], int(state["count"])) if state else cls()

    @property
    def value(self) -> Tensor:
        """The mean magnitudes, float64 ``[…channels]``."""
        if self.total is None:
            raise SsmquantError("mean_abs: nothing was observed; calibrate with at least one sequence")
        return self.total.double() * _UNIT / self.count
