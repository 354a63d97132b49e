"""A table of values for each row, and a few weights exact besides (SqueezeLLM, arXiv 2306.07629, sections 4.1, 4.2).

    packed     uint8   [out, in / 2]    places in the row's table, two a byte, the even column in the low half
    table      float16 [out, 2^bits]    ascending in each row
    values     float16 [nnz]            what is added to single weights; only with a sparse part
    positions  int32   [nnz]            ascending: row * in + column of each

``W[n, k] = float32(table[n, code[n, k]])``, plus ``float32(value)`` at the positions. Example with 3 bits:

    codes [[1, 7]], table [[0, 0.5, …, 8]], 0.25 at column 1:  W = [[0.5, 8.25]]
    packed 71 · table 00 00 00 38 … 00 48 · values 00 34 · positions 01 00 00 00

Codes of 3 bits are stored in 4 as well, so that all kernels read one packing: 3 bits save half of the table, not codes.

The number of sparse weights follows from the shape and the scheme's percentage alone (`sparse_count`), so that a
plan knows the shapes of what is stored; the paper's thresholds give about this many.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.ops.float_linear import float_linear
from ssmquant.scheme import TensorScheme

__all__ = ["Lut", "sparse_count"]

_BITS = (3, 4)


def sparse_count(shape: tuple[int, int], percent: float) -> int:
    """Return how many weights of a matrix a percentage is."""
    return round(percent * shape[0] * shape[1] / 100)


class Lut(Format):
    """Places in a table of 8 or 16 values a row; the product is a float one with the looked-up weight."""

    name = "lut"

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme is a table of 8 or 16 values."""
        return scheme.kind == "lut" and scheme.bits in _BITS

    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
        """Return packed codes and table, and the sparse part if there is one.

        Raises:
            RecipeError: K is odd, or the matrix has more weights than int32 positions.
        """
        rows, columns = shape
        if columns % 2:
            raise RecipeError(
                f"codes are stored two a byte, which rows of {columns} do not allow; keep it a float"
            )
        specs = {
            "packed": StoredTensor((rows, columns // 2), torch.uint8),
            "table": StoredTensor((rows, 2**scheme.bits), torch.float16),
        }
        if scheme.sparse is None:
            return specs
        if rows * columns > torch.iinfo(torch.int32).max:
            raise RecipeError(
                f"{rows} x {columns} weights are more than sparse positions can tell apart (2^31)"
            )
        count = sparse_count(shape, scheme.sparse)
        sparse = {
            "values": StoredTensor((count,), torch.float16),
            "positions": StoredTensor((count,), torch.int32),
        }
        return specs | sparse

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return the codes packed, table and sparse part as they are."""
        places = codes.codes.view(torch.uint8)
        stored = {"packed": places[:, 0::2] | (places[:, 1::2] << 4), "table": codes.scale}
        return stored if codes.sparse is None else stored | codes.sparse._asdict()

    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the looked-up values with the sparse ones added."""
        packed = stored["packed"]
        places = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)
        weight = stored["table"].float().gather(1, places.long())
        if "positions" in stored:
            # Positions are distinct, so this adds to each weight at most once, in whatever order.
            weight.view(-1).index_add_(0, stored["positions"], stored["values"].float())
        return weight

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the float product."""
        y: Tensor = float_linear(
            numerics.dequantize(x, x_scale), self.dequantize(stored), None, None, None, bias, scale_out
        )
        return y
