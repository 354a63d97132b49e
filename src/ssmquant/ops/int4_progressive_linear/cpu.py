"""C++ kernel of the linear layer with int4 weights whose groups have integer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.int4_progressive_linear import int4_progressive_linear
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel


def _supports(x: Tensor, x_scale: Tensor, packed: Tensor, grid: Tensor, *rest: Tensor | None) -> str | None:
    size = x.shape[-1] // grid.shape[1]
    return f"groups of {size} codes; multiples of 8 are supported" if size % 8 else None


def _int4_progressive_linear(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    out = torch.empty(
        (*x.shape[:-1], packed.shape[0]), dtype=torch.float32 if scale_out is None else torch.int8
    )
    native.int4_progressive_linear(
        x.contiguous().view(-1, x.shape[-1]),
        x_scale.flatten(),
        packed.contiguous(),
        grid.contiguous(),
        weight_scale.contiguous(),
        None if bias is None else bias.contiguous(),
        None if scale_out is None else 1.0 / scale_out,
        out.view(-1, packed.shape[0]),
    )
    return out


int4_progressive_linear.register(Kernel("cpu", "cpu", _int4_progressive_linear, _supports))
