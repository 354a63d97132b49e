"""`Grid`: the values that each weight may take, given scales and zero points."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ssmquant.formats import Codes
from ssmquant.numerics import code_limit

__all__ = ["Grid", "a_column"]


def a_column(values: Tensor, columns: int) -> Tensor:
    """Return what each column has, ``[1 or N, columns]``, of values a tensor, a row, or a group of columns."""
    if values.dim() == 2:
        return values.repeat_interleave(columns // values.shape[1], dim=1)
    return values[:, None].expand(-1, columns)


class Grid(NamedTuple):
    """Values ``integer * step`` of weights ``[N, K]``, each integer from the lowest to the highest, both included.

    The integer is a weight's code without its zero point.

    Attributes:
        step: float32 ``[1 or N, K]``.
        lowest: of any dtype, shaped like the step.
        highest: likewise.
    """

    step: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def of(cls, codes: Codes, bits: int, columns: int) -> Grid:
        """Return the grid of codes with that many bits, of which only scales and zero points are read."""
        step = a_column(codes.steps, columns)
        if codes.zero_point is None:
            highest = step.new_full(step.shape, code_limit(bits))
            return cls(step, -highest, highest)
        zero, half = a_column(codes.zero_point.to(step.dtype), columns), 1 << (bits - 1)
        return cls(step, -half - zero, half - 1 - zero)
