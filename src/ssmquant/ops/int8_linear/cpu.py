"""C++ kernel of the int8 linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel


def _supports(*args: Tensor | None) -> str | None:
    return None


def _int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    out = torch.empty(
        (*x.shape[:-1], weight.shape[0]), dtype=torch.float32 if scale_out is None else torch.int8
    )
    native.int8_linear(
        x.contiguous().view(-1, weight.shape[1]),
        x_scale.flatten(),
        weight.contiguous(),
        weight_scale.contiguous(),
        None if bias is None else bias.contiguous(),
        None if scale_out is None else 1.0 / scale_out,
        out.view(-1, weight.shape[0]),
    )
    return out


int8_linear.register(Kernel("cpu", "cpu", _int8_linear, _supports))
