"""`Observer`: a mergeable statistic of one site.

Laws (tested): ``merge`` is associative and commutative with the fresh observer as identity, and observing two batches
equals merging observers of each; all exactly, not up to rounding. So statistics may be gathered in any order
on any number of workers. Averages that depend on order (exponential moving ones) cannot be observers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from torch import Tensor

__all__ = ["Observer"]


class Observer(ABC):
    """A statistic of one site."""

    name: ClassVar[str]

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Observe a float tensor ``[tokens, …channels]``."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Return the observer of both observers' data."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the tensors that hold the statistic; empty before the first update."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer whose `state` this is."""
