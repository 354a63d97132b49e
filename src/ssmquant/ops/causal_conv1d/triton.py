"""The causal convolution on GPUs: taps, SiLU and codes in one pass, over sequences or one step of many.

The newest inputs of a sequence are kept either as the op has them (``[C, d_conv]``, in order of time) or as a ring
``[d_conv, C]``, in which the token at position p lies at ``p mod d_conv``: a step then writes one entry that no step
running beside it reads, and moves nothing.
"""

from __future__ import annotations

from itertools import product

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

_SPAN = (64, 32, 128)  # tokens of a program, tokens and channels of a tile
_ASSEMBLY = tl.constexpr(not triton.knobs.runtime.interpret)


# Four channels at a time: their codes are transposed by bytes; the sums go into the mantissa of 1.5 * 2**23.
_SUM_OF_FOUR = tl.constexpr(
    """
    {
    .reg .b32 e, f, g, h, w;
    prmt.b32 e, $4, $5, 0x5140;
    prmt.b32 f, $6, $7, 0x5140;
    prmt.b32 g, $4, $5, 0x7362;
    prmt.b32 h, $6, $7, 0x7362;
    """
    + "".join(
        f"prmt.b32 w, {pairs}, {bytes}; dp4a.s32.s32 w, w, ${8 + i}, 0x4B400000; sub.f32 ${i}, w, 0f4B400000;\n"
        for i, (pairs, bytes) in enumerate(product(("e, f", "g, h"), ("0x5410", "0x7632")))
    )
    + "}"
)


@triton.jit
def _sum_of_four(a, b, c, d, weight):
    """Return the sums of products of four int8 with the four int8 in each word of ``weight``, as float32."""
    return tl.inline_asm_elementwise(
        _SUM_OF_FOUR,
        "=&f,=&f,=&f,=&f,r,r,r,r,r,r,r,r",
        [a, b, c, d, weight],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _block(
    x, history, ring, out, weight, words, x_factor, factor, bias, inverse, first, done, position, length, c, known,
    x_token, history_token, history_channel, out_token,
    TAPS: tl.constexpr, INTEGER: tl.constexpr, X_SCALED: tl.constexpr, WORDS: tl.constexpr, HISTORY: tl.constexpr,
    RING: tl.constexpr, CODED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Convolve tokens from ``first`` on, those before ``done`` apart; pointers are a row's, constants ``[1, C]``."""
    t = first + tl.arange(0, TOKENS)[:, None]
    if WORDS and not HISTORY:
        here = (t >= done) & (t < length) & known
        total = _sum_of_four(
            tl.load(x + (t - 3) * x_token + c, mask=here, other=0),
            tl.load(x + (t - 2) * x_token + c, mask=here, other=0),
            tl.load(x + (t - 1) * x_token + c, mask=here, other=0),
            tl.load(x + t * x_token + c, mask=here, other=0),
            tl.broadcast_to(words, (TOKENS, c.shape[1])),
        )  # fmt: skip
    else:
        total = tl.zeros((TOKENS, c.shape[1]), tl.int32 if INTEGER else tl.float32)
        for tap in tl.static_range(TAPS):
            time = t + (tap + 1 - TAPS)
            values = tl.load(x + time * x_token + c, mask=(time >= 0) & (time < length) & known, other=0)
            values = values.to(total.dtype)
            if HISTORY:
                before = (time < 0) & known
                if RING:
                    before = before & (position + time >= 0)
                place = (position + time + TAPS) % TAPS
                old = tl.load(history + place * history_token + c * history_channel, mask=before, other=0)
                values += old.to(total.dtype)  # one of the two is 0
            if X_SCALED:
                values = values * x_factor
            w = tl.load(weight + c * TAPS + tap, mask=known, other=0).to(total.dtype)
            if not INTEGER:
                w = w * factor
            total += values * w
        total = total.to(tl.float32)
    if INTEGER:
        y = tl.fma(total, tl.broadcast_to(factor, total.shape), tl.broadcast_to(bias, total.shape))
    else:
        y = total + bias
    y = fast_silu(y)
    written = (t >= done) & (t < length) & known
    if CODED:
        tl.store(out + t * out_token + c, quantize(y, inverse), mask=written)
    else:
        tl.store(out + t * out_token + c, y, mask=written)
    if RING:  # noqa: SIM102  (one is known when the kernel is compiled, the other is not)
        if first + TOKENS > length - TAPS:
            newest = tl.load(x + t * x_token + c, mask=written, other=0)
            place = (position + t) % TAPS
            tl.store(ring + place * history_token + c, newest, mask=written & (t >= length - TAPS))


@triton.jit
def _convolve(
    x, x_scale, weight, weight_scale, bias, history, ring, slots, positions, out, scale_out,
    length, channels, x_row, x_token, history_row, history_token, history_channel, out_row, out_token,
    TAPS: tl.constexpr, INTEGER: tl.constexpr, X_SCALE_STEP: tl.constexpr, WEIGHT_SCALE_STEP: tl.constexpr,
    BIASED: tl.constexpr, RING: tl.constexpr, CODED: tl.constexpr, SCALE_OUT_STEP: tl.constexpr,
    SPAN: tl.constexpr, HEAD: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = INTEGER and TAPS == 4 and _ASSEMBLY
    row = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    # Eight channels a thread: with sixteen, their constants take the registers of other programs.
    c = tl.max_contiguous(c, (1, 8))
    known = c < channels
    # What is a channel's: the factor of its sums (of its weights where they are floats), bias, 1 / scale.
    x_factor = tl.full((1, CHANNELS), 1.0, tl.float32)
    factor = x_factor
    inverse = x_factor
    offset = tl.zeros((1, CHANNELS), tl.float32)
    words = tl.zeros((1, CHANNELS), tl.int32)
    if X_SCALE_STEP >= 0:
        x_factor = tl.load(x_scale + c * X_SCALE_STEP, mask=known, other=0.0)
    if WEIGHT_SCALE_STEP >= 0:
        factor = tl.load(weight_scale + c * WEIGHT_SCALE_STEP, mask=known, other=0.0)
    if INTEGER:
        factor = x_factor * factor
    if BIASED:
        offset = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    if CODED:
        inverse = reciprocal(tl.load(scale_out + c * SCALE_OUT_STEP, mask=known, other=1.0))
    if WORDS:
        words = tl.load(weight.to(tl.pointer_type(tl.int32)) + c, mask=known, other=0)
    wait_for_previous(PDL)
    let_next_start(PDL)
    slot = row
    position = 0
    if RING:
        slot = tl.load(slots + row).to(tl.int64)
        position = tl.load(positions + slot)
        ring += slot * history_row
    x += row * x_row
    out += row * out_row
    history += slot * history_row
    first = tl.program_id(0) * SPAN
    last = tl.minimum(first + SPAN, length)
    done = 0
    if first == 0:
        # Only the first tokens need what was before the sequence.
        _block(
            x, history, ring, out, weight, words, x_factor, factor, offset, inverse, 0, 0, position, length, c, known,
            x_token, history_token, history_channel, out_token,
            TAPS, INTEGER, not INTEGER and X_SCALE_STEP >= 0, WORDS, True, RING, CODED, HEAD,
        )  # fmt: skip
        done = HEAD
        first += HEAD // TOKENS * TOKENS
    for start in tl.range(first, last, TOKENS, num_stages=1):
        _block(
            x, history, ring, out, weight, words, x_factor, factor, offset, inverse, start, done, position, length, c,
            known, x_token, history_token, history_channel, out_token,
            TAPS, INTEGER, not INTEGER and X_SCALE_STEP >= 0, WORDS, False, RING, CODED, TOKENS,
        )  # fmt: skip


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
    span, tokens, width = (1, 1, 256) if length == 1 else _SPAN
    head = 1 if length == 1 else triton.next_power_of_2(max(weight.shape[1] - 1, 1))
    grid = (triton.cdiv(length, span), triton.cdiv(channels, width), batch)
    _convolve[grid](
        x, x_scale, weight, weight_scale, bias, history, ring, slots, positions, out, scale_out,
        length, channels, x.stride(0), x.stride(1), *history_strides, out.stride(0), out.stride(1),
        weight.shape[1], x_scale is not None and weight_scale is not None, _step(x_scale), _step(weight_scale),
        bias is not None, ring is not None, scale_out is not None, max(_step(scale_out), 0), span, head, tokens, width,
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
