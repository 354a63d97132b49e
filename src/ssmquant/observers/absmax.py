"""`AbsMax`: the largest magnitude of each channel. Coarser maxima (groups, the tensor) follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from ssmquant.observers.base import Observer

__all__ = ["AbsMax"]


class AbsMax(Observer):
    """Largest magnitude a channel.

    Attributes:
        value: float32 ``[…channels]``; None before the first update.
    """

    name: ClassVar[str] = "absmax"

    def __init__(self, value: Tensor | None = None) -> None:
        self.value = value

    def update(self, x: Tensor) -> None:
        """Observe ``[tokens, …channels]``."""
        self.value = self._larger(self.value, x.detach().abs().amax(dim=0).float())

    def merge(self, other: Self) -> Self:
        """Return the larger of both."""
        return type(self)(self._larger(self.value, other.value))

    def state(self) -> dict[str, Tensor]:
        """Return ``value``."""
        return {} if self.value is None else {"value": self.value}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer with this ``value``."""
        return cls(state.get("value"))

    @staticmethod
    def _larger(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return b if a is None else a
        return torch.maximum(a, b)
