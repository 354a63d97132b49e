"""`Quantizer`: a row of the table of quantizers, as recipes name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ssmquant.formats import Codes
from ssmquant.scheme import TensorScheme

__all__ = ["Quantizer"]


@dataclass(frozen=True)
class Quantizer:
    """How the codes of a weight are chosen.

    Attributes:
        name: as recipes call it.
        choose: from weight ``[N, K]``, scheme and the statistic (empty if none is needed) to codes.
        needs: name of the statistic that it needs: ``hessian``, the second moment ``[K, K]`` of the layer's input, or
            ``fisher``, the weight's own sum of squared gradients ``[N, K]``.
        kind: of the schemes that it has codes for.
        refuses: why it has no codes for a scheme, or None.
        mixed: whether it keeps outlier channels apart, as mixed schemes need and no others.
        sequential: whether its statistic is that of a model whose layers before this one are quantised already.
    """

    name: str
    choose: Callable[[Tensor, TensorScheme, Tensor], Codes]
    needs: Literal["hessian", "fisher"] | None = None
    kind: Literal["int", "lut"] = "int"
    refuses: Callable[[TensorScheme], str | None] = lambda scheme: None
    mixed: bool = False
    sequential: bool = False
