"""Symmetric int8 weights: ``codes [out, in]`` and ``scale [1]`` or ``[out]``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.ops.float_linear import float_linear
from ssmquant.ops.float_linear.reference import float_weight
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["Int8"]


class Int8(Format):
    """Int8 codes; with int8 activations the product is exact, with float ones the weight is dequantised on the fly."""

    name = "int8"

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme is a symmetric int8 one with a scale a tensor or a row."""
        rows = (Granularity.PER_TENSOR, Granularity.PER_CHANNEL)
        eight_bits = scheme.kind == "int" and scheme.bits == 8 and scheme.symmetric
        return eight_bits and scheme.granularity in rows and not scheme.quantises_input

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return codes and scale."""
        rows = 1 if scheme.granularity is Granularity.PER_TENSOR else shape[0]
        return {"codes": StoredTensor(shape, torch.int8), "scale": StoredTensor((rows,), torch.float32)}

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return codes and scale as they are."""
        return {"codes": codes.codes, "scale": codes.scale}

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return ``codes * scale``."""
        return float_weight(stored["codes"], stored["scale"])

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
            exact: Tensor = int8_linear(x, x_scale, stored["codes"], stored["scale"], bias, scale_out)
            return exact
        y: Tensor = float_linear(
            numerics.dequantize(x, x_scale), stored["codes"], stored["scale"], None, None, bias, scale_out
        )
        return y
