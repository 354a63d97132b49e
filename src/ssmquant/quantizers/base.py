"""`Quantizer`: a row of the table of quantizers, as recipes name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ssmquant.formats import Codes
from ssmquant.scheme import TensorScheme

__all__ = ["Quantizer"]


@dataclass(frozen=True)
class Quantizer:
    """How the codes of a weight are chosen.

    Attributes:
        name: as recipes call it.
        choose: from weight ``[N, K]``, scheme and the input's second moment ``[K, K]`` (empty if not needed) to codes.
        needs_hessian: whether it needs that second moment.
    """

    name: str
    choose: Callable[[Tensor, TensorScheme, Tensor], Codes]
    needs_hessian: bool = False
