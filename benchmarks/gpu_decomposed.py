"""A linear layer as LLM.int8() runs it (arXiv 2208.07339), in the place of ours: what its decisions at run time cost.

The columns of x with the largest entries are multiplied in float16 with the same columns of the weight, the rest as
codes under a scale a token that is found as it runs. The paper takes every column that has an entry above a threshold,
so their number is known on the GPU alone, and a CUDA graph cannot have it; here it is fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ssmquant.ops.hadamard.triton import emit
from ssmquant.ops.int8_linear.triton import linear_int8
from ssmquant.ops.quantize.triton import codes_per_token, codes_static
from ssmquant.runtime.cuda.network import Linear, Norm

__all__ = ["Decomposed"]

_COLUMNS = 16  # multiplied in float16


class Decomposed:
    """Has the interface of `ssmquant.runtime.cuda.network.Linear`.

    Args:
        layer: of int8 codes.
    """

    def __init__(self, layer: Linear) -> None:
        self._layer = layer

    def scratch_bytes(self, tokens: int) -> int:
        """Return the bytes that a product of so many tokens takes for a while: the float result."""
        return 4 * tokens * self._layer.out_features

    def of_norm(self, hidden: Tensor, norm: Norm, scale_out: Tensor | None, out: Tensor) -> Tensor:
        """Write the layer of the norm of ``hidden [M, K]`` to ``out [M, N]`` and return it."""
        assert scale_out is not None
        x = emit(hidden, None, None, norm.gain, norm.eps, hidden.shape[1], False, None)
        codes_static(self._product(x), scale_out, out=out)
        return out

    def add_to(self, residual: Tensor, x: Tensor, x_scale: Tensor) -> None:
        """Add the layer of ``x [M, K]``, codes here, to a float ``residual [M, N]``."""
        residual += self._product(x * x_scale)

    def _product(self, x: Tensor) -> Tensor:
        layer = self._layer
        columns = x.abs().amax(0).topk(_COLUMNS).indices
        outliers = x[:, columns]
        x = x.index_fill(1, columns, 0.0)
        codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
        scale = x.new_empty(len(x), 1)
        codes_per_token(x, 8, out=codes, scale_out=scale)
        y = x.new_empty(len(x), layer.out_features)
        stored, stored_scale = layer.stored
        linear_int8(codes, scale, stored, stored_scale, layer.bias, None, out=y, chained=False)
        weight = (stored[:, columns] * stored_scale[:, None]).half()
        return y + linear(outliers.half(), weight)
