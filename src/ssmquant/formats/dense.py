"""Float weights as they are: ``weight [out, in]``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.ops.float_linear import float_linear
from ssmquant.scheme import TensorScheme

__all__ = ["Dense"]

_DTYPES = {16: torch.float16, 32: torch.float32}


class Dense(Format):
    """A float weight; an activation that comes as codes is dequantised for it."""

    name = "dense"

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme is a float one."""
        return scheme.is_float

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return ``weight [out, in]``."""
        return {"weight": StoredTensor(shape, _DTYPES[scheme.bits])}

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Raise: a float weight has no codes."""
        raise RecipeError("a float weight has no codes; its scheme is a float one")

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the weight itself."""
        return stored["weight"]

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the float product; arithmetic in float32 also for a weight at rest in float16."""
        y: Tensor = float_linear(
            numerics.dequantize(x, x_scale), stored["weight"], None, None, None, bias, scale_out
        )
        return y
