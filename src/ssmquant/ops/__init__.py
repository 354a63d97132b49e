"""Operations of the numerics contract, one folder each: schema and check, exact reference, kernels.

Leaves out which tensors are quantised (that is the plan's) and how codes were chosen (the quantizers').

    from ssmquant.ops.int8_linear import int8_linear
    y = int8_linear(x_codes, x_scale, w_codes, w_scale, None, None)

An op with an optional ``scale_out`` returns float32 without it; with it, it returns exactly
``numerics.quantize(float32 result, scale_out)``. So a fused kernel and the two steps after each other give
the same codes.
"""

from __future__ import annotations

from ssmquant.ops.registry import Kernel, Op, all_ops, use_backend

__all__ = ["Kernel", "Op", "all_ops", "use_backend"]
