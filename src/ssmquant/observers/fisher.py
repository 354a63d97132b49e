"""`Fisher`: the diagonal of the empirical Fisher information of a weight, the sum of squared gradients.

SqueezeLLM (arXiv 2306.07629, section 4.1) weighs the error of each weight by it: to second order, and with the Hessian
taken for its Fisher diagonal, ``F (w - w')^2`` is what the change of a weight adds to the loss.

Each window's square is rounded to a fixed-point number (2^-50) before it is added, as int64: so sums are exact and
shards merge in any order to the same bits. A gradient below 2^-25.5 (2e-8) counts as zero; those of the embedded
model go from 1e-5 to 1e-1. A sum that has reached 2^61 units (2048: a gradient of 45) stays there, which for numbers
that are never negative is as associative as a sum: weights like that count as equally sensitive.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers.fixed_point import FixedPointSum

__all__ = ["Fisher"]

_UNIT = 2.0**-50
_MOST = 2**61  # so that the sum of two fits 64 bits


class Fisher(FixedPointSum):
    """Sum of the squared gradients of a weight; `total` and `value` are shaped like the weight."""

    name: ClassVar[str] = "fisher"
    unit: ClassVar[float] = _UNIT

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
            self.add(square.to(torch.int64))

    @staticmethod
    def added(a: Tensor, b: Tensor) -> Tensor:
        """Return the sum, which stays at the end of the range once it is there."""
        return (a + b).clamp(max=_MOST)
