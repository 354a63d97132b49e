"""Int4 weights with a zero point a group: ``packed [out, in / 2]``, ``scale`` and ``zero_point [out, groups]``.

A weight is ``(code - zero_point) * scale``. Codes and zero points go from -8 to 7 (the usual 0 to 15, less 8); codes
are packed as those of `int4`. A group of 128 takes 64 bytes of codes, 4 of scale (float32) and 1 of zero point (int8):
4.3125 bits a weight.
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
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["Int4Asymmetric"]


class Int4Asymmetric(Format):
    """Int4 codes with zero points, for float activations: the weight is dequantised on the fly."""

    name = "int4-asymmetric"
    refuses_codes = (
        "int8 activations have no integer product with zero points here; leave the activation in float, or use a "
        "symmetric weight scheme"
    )

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme is an int4 one with a scale and a zero point a group."""
        grouped = scheme.granularity is Granularity.PER_GROUP and scheme.scale_dtype == "float32"
        return scheme.kind == "int" and scheme.bits == 4 and not scheme.symmetric and grouped

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return packed codes, scales and zero points.

        Raises:
            RecipeError: the group size does not divide K, or K is odd.
        """
        tensors = Int4().tensors(shape, scheme)
        return tensors | {"zero_point": StoredTensor(tensors["scale"].shape, torch.int8)}

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return the codes packed, the scales and the zero points."""
        if codes.zero_point is None:
            raise RecipeError("codes without zero points are of a symmetric scheme")
        return {"packed": pack_int4(codes.codes), "scale": codes.scale, "zero_point": codes.zero_point}

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return ``(codes - zero_point) * scale``."""
        return float_weight(stored["packed"], stored["scale"], stored["zero_point"])

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the float product with the dequantised weight."""
        y: Tensor = float_linear(
            numerics.dequantize(x, x_scale), stored["packed"], stored["scale"], stored["zero_point"], None, bias,
            scale_out,
        )  # fmt: skip
        return y
