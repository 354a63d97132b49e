"""`Hessian`: the second moment ``sum x x^T`` of a site, for GPTQ.

The product of an update's tokens is float32. Each is rounded to a fixed-point number (2^-24) before it is added, as
int64: so sums are exact and shards merge in any order to the same bits. An entry is off by at most 2^-25 an update
for that, which is far below what GPTQ's damping adds for channels of root mean square above 1e-3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers.fixed_point import FixedPointSum

__all__ = ["Hessian"]

_UNIT = 2.0**-24
_LARGEST = 2.0**62


class Hessian(FixedPointSum):
    """Second moment of the channels; `total` and `value` are ``[C, C]``."""

    name: ClassVar[str] = "hessian"
    unit: ClassVar[float] = _UNIT

    def update(self, x: Tensor) -> None:
        """Observe ``[tokens, C]``.

        Raises:
            SsmquantError: a second moment is not finite, or the sum exceeds what fixed-point numbers hold.
        """
        x = x.detach().float()
        moment = (x.T @ x).double() / _UNIT
        _check(moment.diagonal())
        self.add(moment.round().to(torch.int64))

    @staticmethod
    def added(a: Tensor, b: Tensor) -> Tensor:
        """Return the sum; raises `SsmquantError` where it leaves the range."""
        total = a + b  # of two magnitudes below 2^62: no overflow
        _check(total.diagonal())
        return total


def _check(diagonal: Tensor) -> None:
    """Raise unless the diagonal, in units of 2^-24, is below 2^62; no other entry of a second moment is larger."""
    if not bool((diagonal < _LARGEST).all()):
        raise SsmquantError(
            f"hessian: second moments reach {float(diagonal.max()) * _UNIT:.3g}, beyond the "
            f"{_LARGEST * _UNIT:.3g} that 64-bit sums hold; the float model's activations are out of range on this "
            "text, so leave it out, calibrate on less, or use round to nearest (quantizer: rtn)"
        )
