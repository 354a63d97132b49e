"""C++ kernel of the int8 embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel


def _supports(ids: Tensor, weight: Tensor, scale: Tensor) -> str | None:
    return None


def _int8_embedding(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty((*ids.shape, weight.shape[1]), dtype=torch.float32)
    native.int8_embedding(
        ids.flatten().long(), weight.contiguous(), scale.contiguous(), out.view(-1, weight.shape[1])
    )
    return out


int8_embedding.register(Kernel("cpu", "cpu", _int8_embedding, _supports))
