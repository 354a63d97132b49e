"""C++ kernel of the Hadamard transform, and the base matrix as the kernels that end with it take it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ssmquant.ops.hadamard import hadamard
from ssmquant.ops.hadamard.matrix import base_order, matrix
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel

__all__ = ["base_of"]


@cache
def base_of(channels: int) -> Tensor:
    """Return the transposed base matrix of a transform of so many channels, float32 ``[m, m]``."""
    return matrix(base_order(channels) or 1).T.float().contiguous()


def _supports(x: Tensor) -> str | None:
    return None if x.dtype == torch.float32 else f"x is {x.dtype}, float32 is supported"


def _hadamard(x: Tensor) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    native.hadamard(y.view(-1, x.shape[-1]), base_of(x.shape[-1]))
    return y


hadamard.register(Kernel("cpu", "cpu", _hadamard, _supports))
