"""`FixedPointSum`: base of observers that add up real numbers as int64 in a fixed unit, so that sums are exact.

Float sums depend on their order; rounded once to multiples of the unit, the addends do not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers.base import Observer

__all__ = ["FixedPointSum"]


class FixedPointSum(Observer):
    """A sum of tensors of one shape.

    Attributes:
        total: int64, in units of `unit`; None before the first update.
    """

    unit: ClassVar[float]

    def __init__(self, total: Tensor | None = None) -> None:
        self.total = total

    @staticmethod
    @abstractmethod
    def added(a: Tensor, b: Tensor) -> Tensor:
        """Return ``a + b`` of two totals; what happens at the end of the range is the subclass's."""

    def add(self, value: Tensor) -> None:
        """Add int64 multiples of the unit to the total."""
        self.total = value if self.total is None else self.added(self.total, value)

    def merge(self, other: Self) -> Self:
        """Return the sum of both."""
        if self.total is None or other.total is None:
            return type(self)(other.total if self.total is None else self.total)
        return type(self)(self.added(self.total, other.total))

    def state(self) -> dict[str, Tensor]:
        """Return ``total``."""
        return {} if self.total is None else {"total": self.total}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer with this ``total``."""
        return cls(state.get("total"))

    @property
    def value(self) -> Tensor:
        """The sum, float64."""
        if self.total is None:
            raise SsmquantError(f"{self.name}: nothing was observed; calibrate with at least one sequence")
        return self.total.double() * self.unit
