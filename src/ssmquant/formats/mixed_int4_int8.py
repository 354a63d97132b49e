"""Int4 weights in groups, with the channels of largest activations kept apart in int8 (Atom, arXiv 2310.19102).

    order          int32   [in]                     input channel of each place: ordinary ones, then the outliers
    packed         uint8   [out, (in - outliers)/2] int4 codes of the ordinary channels
    scale          float32 [out, groups]
    outliers       int8    [out, outliers]
    outlier_scale  float32 [out]

The layer quantises its own input, since the groups of an activation are those of the weight's channel order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.ops.int4_linear.packing import pack_int4, unpack_int4
from ssmquant.ops.mixed_linear import mixed_linear
from ssmquant.scheme import TensorScheme

__all__ = ["MixedInt4Int8"]


@dataclass(frozen=True)
class MixedInt4Int8(Format):
    """Int4 codes with int8 outliers, and activations quantised at run time.

    Attributes:
        activation_bits: width of the activation codes of ordinary channels.
        activation_clip: share of an activation group's range that its codes span.
    """

    name = "mixed-int4-int8"
    refuses_codes = (
        "its layer quantises its own input, in groups of the weight's channel order; leave the input float"
    )
    activation_bits: int = 8
    activation_clip: float = 1.0

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme has int8 outliers beside its int4 groups."""
        return scheme.mixed is not None

    def of(self, scheme: TensorScheme) -> MixedInt4Int8:
        """Return the format with the scheme's activation codes."""
        assert scheme.mixed
        return MixedInt4Int8(scheme.mixed.activation_bits, scheme.mixed.activation_clip)

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return order, codes and scales.

        Raises:
            RecipeError: the groups do not divide the channels that the outliers leave, or leave an odd number.
        """
        assert scheme.mixed and scheme.group_size
        (rows, columns), outliers, size = shape, scheme.mixed.outliers, scheme.group_size
        ordinary = columns - outliers
        if ordinary < 1 or ordinary % size or ordinary % 2:
            raise RecipeError(
                f"groups of {size} do not divide the {max(ordinary, 0)} channels that {outliers} outliers leave of "
                f"{columns}; {_usable(columns, outliers, size)}"
            )
        return {
            "order": StoredTensor((columns,), torch.int32),
            "packed": StoredTensor((rows, ordinary // 2), torch.uint8),
            "scale": StoredTensor((rows, ordinary // size), torch.float32),
            "outliers": StoredTensor((rows, outliers), torch.int8),
            "outlier_scale": StoredTensor((rows,), torch.float32),
        }

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return the codes packed, scales and order as they are.

        Raises:
            RecipeError: the quantizer kept no outliers apart.
        """
        if codes.order is None or codes.outliers is None:
            raise RecipeError(
                "a mixed scheme needs a quantizer that keeps outliers apart, mixed-rtn or mixed-gptq"
            )
        return {
            "order": codes.order,
            "packed": pack_int4(codes.codes),
            "scale": codes.scale,
            "outliers": codes.outliers.codes,
            "outlier_scale": codes.outliers.scale,
        }

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return ``codes * scale`` with every channel back in its place."""
        codes, scale = unpack_int4(stored["packed"]), stored["scale"]
        ordinary = numerics.dequantize(codes.unflatten(1, (scale.shape[1], -1)), scale[..., None]).flatten(1)
        outliers = numerics.dequantize(stored["outliers"], stored["outlier_scale"][:, None])
        ordered = torch.cat([ordinary, outliers], dim=1)
        return torch.empty_like(ordered).index_copy_(1, stored["order"].long(), ordered)

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the product of the weight's codes and those that are found for a float x."""
        y: Tensor = mixed_linear(
            x, stored["order"], stored["packed"], stored["scale"], stored["outliers"], stored["outlier_scale"],
            self.activation_bits, self.activation_clip, bias, scale_out,
        )  # fmt: skip
        return y


def _usable(columns: int, outliers: int, size: int) -> str:
    """Return which numbers of outliers, or which group size, would fit the layer."""
    below = (columns - 1) // size * size  # ordinary channels in whole groups that leave at least one outlier
    nearest = range(below, 0, -size)
    counts = sorted(sorted((columns - c for c in nearest if c % 2 == 0), key=lambda n: abs(n - outliers))[:2])
    ordinary = columns - outliers
    sizes = [s for s in range(2, min(size, ordinary) + 1) if ordinary % s == 0 and ordinary % 2 == 0]
    ways = [f"outliers of {' or '.join(map(str, counts))}"] if counts else []
    ways += [f"a group_size of {sizes[-1]}"] if sizes else []
    return (
        f"use {' or '.join(ways)}"
        if ways
        else f"layers of {columns} input channels stay float (+keep=PATTERN)"
    )
