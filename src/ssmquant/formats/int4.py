"""Symmetric int4 weights in groups along K: ``packed [out, in / 2]`` uint8 and ``scale [out, groups]``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.ops.float_linear import float_linear
from ssmquant.ops.float_linear.reference import float_weight
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["Int4"]


class Int4(Format):
    """Int4 codes, two a byte; int8 activations meet them in integer sums, float ones in a dequantised weight."""

    name = "int4"

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme is a symmetric int4 one with a float32 scale a group."""
        grouped = scheme.granularity is Granularity.PER_GROUP
        return scheme.kind == "int" and scheme.bits == 4 and scheme.symmetric and grouped and not scheme.mixed

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return packed codes and scales.

        Raises:
            RecipeError: the group size does not divide K, or K is odd.
        """
        rows, columns = shape
        size = scheme.group_size
        if columns % 2:
            raise RecipeError(f"rows of {columns} codes do not fill bytes of two; use int8")
        if size is None or columns % size:
            nearest = min(_divisors(columns), key=lambda divisor: abs(divisor - (size or 0)))
            raise RecipeError(
                f"groups of {size} codes do not divide rows of {columns}; the nearest group_size that does is {nearest}"
            )
        return {
            "packed": StoredTensor((rows, columns // 2), torch.uint8),
            "scale": StoredTensor((rows, columns // size), torch.float32),
        }

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return the codes packed, and the scales."""
        return {"packed": pack_int4(codes.codes), "scale": codes.scale}

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return ``codes * scale``."""
        return float_weight(stored["packed"], stored["scale"])

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the product: integer when x has codes that share a scale along K, float otherwise."""
        if x_scale is not None and x_scale.shape[-1] == 1:
            exact: Tensor = int4_linear(x, x_scale, stored["packed"], stored["scale"], bias, scale_out)
            return exact
        y: Tensor = float_linear(
            numerics.dequantize(x, x_scale), stored["packed"], stored["scale"], None, None, bias, scale_out
        )
        return y


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number, descending, so that of two as near the larger comes first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]
