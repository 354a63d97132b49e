"""C++ kernel of the linear layer with int4 weights in groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel

_MAX_GROUPS = 16384  # csrc/kernels/linear.hpp


def _supports(
    x: Tensor, x_scale: Tensor, packed: Tensor, weight_scale: Tensor, *rest: Tensor | None
) -> str | None:
    groups = weight_scale.shape[1]
    return (
        None if groups <= _MAX_GROUPS else f"a row has {groups} groups, at most {_MAX_GROUPS} are supported"
    )


def _int4_linear(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    out = torch.empty(
        (*x.shape[:-1], packed.shape[0]), dtype=torch.float32 if scale_out is None else torch.int8
    )
    native.int4_linear(
        x.contiguous().view(-1, x.shape[-1]),
        x_scale.flatten(),
        packed.contiguous(),
        weight_scale.contiguous(),
        None if bias is None else bias.contiguous(),
        None if scale_out is None else 1.0 / scale_out,
        out.view(-1, packed.shape[0]),
    )
    return out


int4_linear.register(Kernel("cpu", "cpu", _int4_linear, _supports))
