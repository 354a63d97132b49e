"""Int4 weights with integer steps: ``packed [out, in / 2]``, ``grid [out, groups]`` uint8, ``scale [out]``.

A weight is ``(code - zero_point) * multiplier * scale``; multiplier and zero point share the byte of their group. The
product of integers is an int8 code, so the layer is exactly an int8 one that is stored in fewer bytes: its sums are
integers over all of K, whatever the group size (progressive group quantisation, QServe, arXiv 2405.04532, section 4.1).
A group of 32 takes 16 bytes of codes and one of grid: 4.25 bits a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.formats.int4 import Int4
from ssmquant.ops.float_linear import float_linear
from ssmquant.ops.float_linear.reference import float_weight
from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.ops.int4_progressive_linear import int4_progressive_linear
from ssmquant.ops.int4_progressive_linear.reference import join_grid, largest_multiplier
from ssmquant.scheme import TensorScheme

__all__ = ["Int4Progressive", "largest_multiplier"]


class Int4Progressive(Format):
    """Int4 codes, two a byte, and a byte a group, for multiplier and zero point, of one float scale a row."""

    name = "int4-progressive"

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme is an int4 one with integer steps a group."""
        return scheme.scale_dtype == "uint8"

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return packed codes, bytes of groups and scales.

        Raises:
            RecipeError: the group size does not divide K, or K is odd.
        """
        tensors = Int4().tensors(shape, scheme)
        return {
            "packed": tensors["packed"],
            "grid": StoredTensor(tensors["scale"].shape, torch.uint8),
            "scale": StoredTensor((shape[0],), torch.float32),
        }

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return the codes packed, the bytes of groups and the scales."""
        if codes.multiplier is None or codes.zero_point is None:
            raise RecipeError("codes without multipliers are of a scheme with float32 scales")
        grid = join_grid(codes.multiplier, codes.zero_point)
        return {"packed": pack_int4(codes.codes), "grid": grid, "scale": codes.scale}

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return ``((codes - zero_point) * multiplier) * scale``."""
        return float_weight(stored["packed"], stored["scale"], grid=stored["grid"])

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
            exact: Tensor = int4_progressive_linear(
                x, x_scale, stored["packed"], stored["grid"], stored["scale"], bias, scale_out
            )
            return exact
        y: Tensor = float_linear(
            numerics.dequantize(x, x_scale), stored["packed"], stored["scale"], None, stored["grid"], bias, scale_out,
        )  # fmt: skip
        return y
