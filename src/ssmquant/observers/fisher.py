"""`Fisher`: the diagonal of the empirical Fisher information of a weight, the sum of squared gradients.

SqueezeLLM (arXiv 2306.07629, section 4.1) weighs the error of each weight by it: to second order, and with the Hessian
taken for its Fisher diagonal, ``F (w - w')^2`` is what the change of a weight adds to the loss.

Each window's square is rounded to a fixed-point number (2^-50) before it is added, as int64: so sums are exact and
shards merge in any order to the same bits. A gradient below 2^-25.5 (2e-8) counts as zero; those of the embedded
model go from 1e-5 to 1e-1. A sum that has reached 2^61 units (2048: a gradient of 45) stays there, which for numbers
that are never negative is as associative as a sum: weights like that count as equally sensitive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers.base import Observer

__all__ = ["Fisher"]

_UNIT = 2.0**-50
_MOST = 2**61  # so that the sum of two fits 64 bits


class Fisher(Observer):
    """Sum of the squared gradients of a weight.

    Attributes:
        total: int64, shaped like the weight, in units of 2^-50; None before the first update.
    """

    name: ClassVar[str] = "fisher"

    def __init__(self, total: Tensor | None = None) -> None:
        self.total = total

    def update(self, x: Tensor) -> None:
        """Observe the gradients of some windows' losses, ``[windows, …weight]``.

        Raises:
            SsmquantError: a gradient is not finite.
        """
        if not bool(torch.isfinite(x).all()):
            raise SsmquantError(
                "fisher: a gradient of the loss is NaN or infinite; "
                "the calibration text drives the float model out of range"
            )
        for gradient in x.detach():
            square = (gradient.double().square() / _UNIT).round().clamp(max=float(_MOST))
            self.total = self._sum(self.total, square.to(torch.int64))

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
        """The sum of squared gradients, float64, shaped like the weight."""
        if self.total is None:
            raise SsmquantError("fisher: nothing was observed; calibrate with at least one sequence")
        return self.total.double() * _UNIT

    @staticmethod
    def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return b if a is None else a
        return (a + b).clamp(max=_MOST)
