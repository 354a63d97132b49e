"""`Hessian`: the second moment ``sum x x^T`` of a site, for GPTQ.

Each update's product is rounded to a fixed-point number (2^-24) before it is added, as int64: so sums are exact and
shards merge in any order to the same bits. The rounding is far below what GPTQ's damping adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers.base import Observer

__all__ = ["Hessian"]

_UNIT = 2.0**-24
_LARGEST = 2.0**62


class Hessian(Observer):
    """Second moment of the channels.

    Attributes:
        total: int64 ``[C, C]`` in units of 2^-24; None before the first update.
    """

    name: ClassVar[str] = "hessian"

    def __init__(self, total: Tensor | None = None) -> None:
        self.total = total

    def update(self, x: Tensor) -> None:
        """Observe ``[tokens, C]``."""
        x = x.detach().float()
        moment = (x.T @ x).double() / _UNIT
        if not bool((moment.abs() < _LARGEST).all()):
            raise SsmquantError(
                f"hessian: second moments reach {float(moment.abs().max() * _UNIT):.3g}, beyond what 64-bit sums hold; "
                "the float model's activations are out of range on this text"
            )
        self.total = self._sum(self.total, moment.round().to(torch.int64))

    def merge(self, other: Self) -> Self:
        """Return the sum of both."""
        return type(self)(self._sum(self.total, other.total))

    def state(self) -> dict[str, Tensor]:
        """Return ``total``."""
        return {} if self.total is None else {"total": self.total}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the observer with this ``total``."""
        return cls(state.get("total"))

    @property
    def value(self) -> Tensor:
        """The second moment, float64 ``[C, C]``."""
        if self.total is None:
            raise SsmquantError("hessian: nothing was observed; calibrate with at least one sequence")
        return self.total.double() * _UNIT

    @staticmethod
    def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return b if a is None else a
        return a + b
