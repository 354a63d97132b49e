"""The causal convolution on GPUs: taps, SiLU and codes in one pass, over sequences or one step of many.

The newest inputs of a sequence are kept either as the op has them (``[C, d_conv]``, in order of time) or as a ring
``[d_conv, C]``, in which the token at position p lies at ``p mod d_conv``: a step then writes one entry that no step
running beside it reads, and moves nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.ops.hadamard.triton import fast_silu
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    wait_for_previous,
)

__all__ = ["convolve_into_ring"]


@triton.jit
def _convolve(
    x, x_scale, weight, weight_scale, bias, history, ring, slots, positions, out, scale_out,
    length, channels, x_row, x_token, history_row, history_token, history_channel, out_row, out_token,
    TAPS: tl.constexpr, INTEGER: tl.constexpr, X_SCALE_STEP: tl.constexpr, WEIGHT_SCALE_STEP: tl.constexpr,
    BIASED: tl.constexpr, RING: tl.constexpr, CODED: tl.constexpr, SCALE_OUT_STEP: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    known = c < channels
    wait_for_previous(PDL)
    slot = row
    position = 0
    if RING:
        slot = tl.load(slots + row).to(tl.int64)
        position = tl.load(positions + slot)
    total = tl.zeros((TOKENS, CHANNELS), tl.int32 if INTEGER else tl.float32)
    for tap in tl.static_range(TAPS):
        time = t + (tap + 1 - TAPS)
        place = (position + time + TAPS) % TAPS
        newest = tl.load(
            x + row * x_row + time * x_token + c, mask=(time >= 0) & (time < length) & known, other=0
        )
        values = newest.to(tl.int32 if INTEGER else tl.float32)
        if tl.program_id(0) == 0:
            before = (time < 0) & known
            if RING:
                before = before & (position + time >= 0)
            old = tl.load(
                history + slot * history_row + place * history_token + c * history_channel,
                mask=before,
                other=0,
            )
            values += old.to(values.dtype)  # one of the two is 0
        w = tl.load(weight + c * TAPS + tap, mask=known, other=0)
        if INTEGER:
            total += values * w.to(tl.int32)
        else:
            factor = w.to(tl.float32)
            if X_SCALE_STEP >= 0:
                values = values * tl.load(x_scale + c * X_SCALE_STEP, mask=known, other=0.0)
            if WEIGHT_SCALE_STEP >= 0:
                factor = factor * tl.load(weight_scale + c * WEIGHT_SCALE_STEP, mask=known, other=0.0)
            total += values * factor
        if RING and tap == TAPS - 1:
            kept = (time >= length - TAPS) & (time < length) & known
            tl.store(
                ring + slot * history_row + place * history_token + c * history_channel, newest, mask=kept
            )
    let_next_start(PDL)
    y = total.to(tl.float32)
    if INTEGER:
        y = y * (
            tl.load(x_scale + c * X_SCALE_STEP, mask=known, other=0.0)
            * tl.load(weight_scale + c * WEIGHT_SCALE_STEP, mask=known, other=0.0)
        )
    if BIASED:
        y = y + tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    y = fast_silu(y)
    place = out + row * out_row + t * out_token + c
    written = (t < length) & known
    if CODED:
        inverse = reciprocal(tl.load(scale_out + c * SCALE_OUT_STEP, mask=known, other=1.0))
        tl.store(place, quantize(y, inverse), mask=written)
    else:
        tl.store(place, y, mask=written)


def _step(scale: Tensor | None) -> int:
    """Return how far the scale of the next channel is; -1 where there is none."""
    return -1 if scale is None else int(scale.numel() > 1)


def _launch(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    history: Tensor,
    history_strides: tuple[int, int, int],
    ring: Tensor | None,
    slots: Tensor | None,
    positions: Tensor | None,
    scale_out: Tensor | None,
    out: Tensor,
) -> None:
    batch, length, channels = x.shape
    tokens = 1 if length == 1 else 32
    width = 256 if length == 1 else 128
    grid = (triton.cdiv(length, tokens), triton.cdiv(channels, width), batch)
    _convolve[grid](
        x, x_scale, weight, weight_scale, bias, history, ring, slots, positions, out, scale_out,
        length, channels, x.stride(0), x.stride(1), *history_strides, out.stride(0), out.stride(1),
        weight.shape[1], x_scale is not None and weight_scale is not None, _step(x_scale), _step(weight_scale),
        bias is not None, ring is not None, scale_out is not None, max(_step(scale_out), 0), tokens, width,
        num_warps=4, **launch_options(x),
    )  # fmt: skip


def convolve_into_ring(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    history: Tensor,
    ring: Tensor,
    slots: Tensor,
    positions: Tensor,
    scale_out: Tensor,
    out: Tensor,
) -> None:
    """Convolve sequences whose newest inputs are kept in rings; write codes to ``out`` and the new inputs to ``ring``.

    Args:
        x: int8 ``[B, L, C]``; channels are neighbours, rows and tokens may lie apart.
        x_scale: float32 ``[1]`` or ``[C]``.
        weight: int8 ``[C, d_conv]``.
        weight_scale: float32 ``[1]`` or ``[C]``.
        bias: float ``[C]`` or None.
        history: int8 ``[slots, d_conv, C]`` to read from: ``ring`` itself where one of L = 1 or position 0 holds, else
            a copy (programs of other tokens write while this is read).
        ring: int8 ``[slots, d_conv, C]``, updated.
        slots: int32 ``[B]``, the slot of each row.
        positions: int32 ``[slots]``, tokens that each slot has seen before.
        scale_out: float32 ``[1]`` or ``[C]``.
        out: int8 ``[B, L, C]``, written.
    """
    strides = (ring.stride(0), ring.stride(1), 1)
    _launch(x, x_scale, weight, weight_scale, bias, history, strides, ring, slots, positions, scale_out, out)


def _run(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x, weight, state = x.contiguous(), weight.contiguous(), state.contiguous()
    taps = weight.shape[1]
    out = torch.empty(x.shape, dtype=torch.float32 if scale_out is None else torch.int8, device=x.device)
    _launch(
        x, x_scale, weight, weight_scale, bias, state, (state.stride(0), 1, taps), None, None, None, scale_out, out
    )  # fmt: skip
    newest = torch.cat([state, x[:, -taps:].transpose(1, 2)], dim=2)[:, :, -taps:]
    return out, newest.contiguous()


def _supports(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> str | None:
    if x.dtype == torch.float64:
        return "convolves codes and float32, not torch.float64"
    return None


causal_conv1d.register(Kernel("triton", "cuda", _run, _supports))
