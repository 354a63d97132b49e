"""`hadamard`: orthonormal Hadamard transform of the last dimension, any size ``2**k * m`` with a known m."""

from __future__ import annotations

from torch import Tensor

from ssmquant.ops.checks import expect_float
from ssmquant.ops.hadamard.matrix import check_size
from ssmquant.ops.hadamard.reference import hadamard as _reference
from ssmquant.ops.registry import Op

__all__ = ["hadamard"]


def _check(x: Tensor) -> None:
    expect_float("hadamard", "x", x)
    check_size(x.shape[-1])


hadamard = Op(
    "hadamard(Tensor x) -> Tensor",
    check=_check,
    reference=_reference,
    fake=lambda x: x.new_empty(x.shape),
)
