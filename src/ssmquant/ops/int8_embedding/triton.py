# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""`int8_embedding` on GPUs: rows of the table, dequantised as they are read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import launch_options, let_next_start, wait_for_previous

__all__ = ["embed_int8"]

_BLOCK = 1024


@triton.jit
def _rows(
    ids, weight, scale, out, vocab, channels, TOKENS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """BLOCK channels of one token; TOKENS: one scale a row of the table."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + token).to(tl.int64)
    known = (row >= 0) & (row < vocab)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    codes = tl.load(weight + row * channels + channel, mask=inside & known, other=0)
    row_scale = tl.load(scale + (row if TOKENS else 0), mask=known, other=float("nan"))
    y = codes.to(tl.float32) * row_scale
    tl.store(out + token * channels + channel, y.to(out.dtype.element_ty), mask=inside)


def embed_int8(ids: Tensor, weight: Tensor, scale: Tensor, *, out: Tensor) -> None:
    """Write the dequantised rows of the table; all contiguous.

    Args:
        ids: int64 or int32 ``[...]``; one outside [0, V) gives a row of NaN, since a kernel cannot raise.
        weight: int8 ``[V, C]``.
        scale: float32 ``[1]`` or ``[V]``.
        out: float ``[..., C]``.
    """
    vocab, channels = weight.shape
    if not out.numel():
        return
    block = min(triton.next_power_of_2(channels), _BLOCK)
    _rows[(ids.numel(), triton.cdiv(channels, block))](
        ids, weight, scale, out, vocab, channels, TOKENS=scale.numel() > 1, BLOCK=block, **launch_options(ids)
    )


def _run(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty((*ids.shape, weight.shape[1]), dtype=torch.float32, device=ids.device)
    embed_int8(ids.contiguous(), weight.contiguous(), scale.contiguous(), out=out)
    return out


int8_embedding.register(Kernel("triton", "cuda", _run, lambda *args: None))
