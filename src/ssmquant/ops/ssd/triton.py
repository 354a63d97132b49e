"""Mamba-2's scan on GPUs: decays, then the states of all chunks, then all outputs beside one another.

A sequence is cut into chunks, at every rounding of a reduced state too. `_decays` turns dt into what each token of a
chunk weighs; `_states` walks through the chunks of a tile of one head's state and leaves the state before each;
`_outputs` computes a chunk of a head from the state before it. Codes go into the products as they are: C B^T is an
exact integer. Factors that are floats go in as two float16 terms (22 bits) after scaling by a power of two, so all is
float32's; sums of decays are float64's, as in the reference. Decays are kept as logarithms to base two.
"""

from __future__ import annotations

from math import ceil, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.hadamard.triton import power_of_two_above, split
from ssmquant.ops.registry import Kernel
from ssmquant.ops.ssd import ssd
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    round_to_codes,
    softplus,
    wait_for_previous,
)

__all__ = ["added", "discretized", "half", "number", "scan_codes", "size_of_states"]

_ASSEMBLY = tl.constexpr(not triton.knobs.runtime.interpret)
_CHUNK = 64
_SMALLEST_STEP = tl.constexpr(2.0**-60)  # below it dt counts as 0 beside D
_HEADS = 8  # whose decays one program computes
_FEW = 96  # heads of sequences up to which more programs are worth more than what they share
# By whether there are few: rows and columns of a state that a program walks through.
_STATE_TILES = {False: (64, 64), True: (32, 64)}
_OUTPUT_REGISTERS = 168  # a thread, so that three programs fit a multiprocessor


@triton.jit
def discretized(codes, scale, bias, dt_min, dt_max, valid):
    """Return dt of some tokens, float32: after scale, bias, softplus and limits; 0 where not valid."""
    dt = softplus(codes.to(tl.float32) * scale + bias)
    return tl.where(valid, tl.minimum(tl.maximum(dt, dt_min), dt_max), 0.0)


@triton.jit
def half(codes):
    """Return int8 codes as float16: their bytes put into the mantissa of 1024, since the conversion is slow."""
    if _ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 u, a, b, k;
            mov.b32 k, 0x64806480;
            xor.b32 u, $2, 0x80808080;
            prmt.b32 a, u, 0x64646464, 0x4140;
            prmt.b32 b, u, 0x64646464, 0x4342;
            sub.f16x2 $0, a, k;
            sub.f16x2 $1, b, k;
            }
            """,
            "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4,
        )  # fmt: skip
    return codes.to(tl.float16)


@triton.jit
def number(codes):
    """Return int8 codes as float32, in the mantissa of 2**23 for the same reason."""
    if _ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 u, a, b, c, d;
            xor.b32 u, $4, 0x80808080;
            prmt.b32 a, u, 0x4B000000, 0x7650;
            prmt.b32 b, u, 0x4B000000, 0x7651;
            prmt.b32 c, u, 0x4B000000, 0x7652;
            prmt.b32 d, u, 0x4B000000, 0x7653;
            sub.f32 $0, a, 0f4B000080;
            sub.f32 $1, b, 0f4B000080;
            sub.f32 $2, c, 0f4B000080;
            sub.f32 $3, d, 0f4B000080;
            }
            """,
            "=f,=f,=f,=f,r", [codes], dtype=tl.float32, is_pure=True, pack=4,
        )  # fmt: skip
    return codes.to(tl.float32)


@triton.jit
def _scaled(codes, high_scale, low_scale):
    """Return int8 codes times the scales that two float16 terms stand for, as two float16 terms (22 bits)."""
    if _ASSEMBLY:
        # The product with the first term has 19 bits: what rounding takes from it is a float16, and exact.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 u, a, b, k, m;
            mov.b32 k, 0x64806480;
            xor.b32 u, $4, 0x80808080;
            prmt.b32 a, u, 0x64646464, 0x4140;
            prmt.b32 b, u, 0x64646464, 0x4342;
            sub.f16x2 a, a, k;
            sub.f16x2 b, b, k;
            mul.rn.f16x2 $0, a, $5;
            neg.f16x2 m, $0;
            fma.rn.f16x2 m, a, $5, m;
            fma.rn.f16x2 $2, a, $7, m;
            mul.rn.f16x2 $1, b, $6;
            neg.f16x2 m, $1;
            fma.rn.f16x2 m, b, $6, m;
            fma.rn.f16x2 $3, b, $8, m;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r,r,r,r", [codes, high_scale, low_scale],
            dtype=(tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
    return split(codes.to(tl.float32) * (high_scale.to(tl.float32) + low_scale.to(tl.float32)))


@triton.jit
def added(x, weight, B):
    """Return what a chunk adds to a state, ``[P, N]`` float32: the sum over tokens of ``weight x B^T``.

    Args:
        x: codes ``[T, P]``.
        weight: float32 ``[T]`` below 2.
        B: codes ``[T, N]``.
    """
    high, low = split(tl.trans(number(x) * weight[:, None]))
    operand = half(B)
    return tl.dot(low, operand, tl.dot(high, operand))


@triton.jit
def _span(chunk, length, period, TOKENS: tl.constexpr):
    """Return the first token of a chunk and the one after its last."""
    chunks = tl.cdiv(period, TOKENS)
    start = chunk // chunks * period + chunk % chunks * TOKENS
    end = tl.minimum(start + TOKENS, chunk // chunks * period + period)
    return start, tl.minimum(end, length)


@triton.jit
def _decays(
    dt, dt_scale, dt_bias, A, B, C, state_scale, state_size,
    coarse, fine, share, weight, carry, total, size, directions, questions, high_scale, low_scale, dt_min, dt_max,
    length, period, chunks, heads, groups, scales, dt_row, dt_token, B_row, B_token,
    D_STATE: tl.constexpr, DT_STEP: tl.constexpr, CODED: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = tl.arange(0, TOKENS)
    known = head < heads
    start, end = _span(chunk, length, period, TOKENS)
    token = start + t
    there = (token < end)[None, :] & known[:, None]
    rate = tl.load(A + head, mask=known, other=0.0)
    bias = tl.load(dt_bias + head, mask=known, other=0.0)
    scale = tl.load(dt_scale + head * DT_STEP, mask=known, other=0.0)
    if CODED:
        # The state's scales for the outputs: below 2**10, from a power of two above every state.
        inverse_size = (254 << 23) - tl.load(state_size).to(tl.int32, bitcast=True)
        unit = inverse_size.to(tl.float32, bitcast=True) * 1024.0
        program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        for place in range(program * TOKENS, scales, tl.num_programs(0) * tl.num_programs(1) * TOKENS):
            high, low = split(tl.load(state_scale + place + t, mask=place + t < scales, other=0.0) * unit)
            tl.store(high_scale + place + t, high, mask=place + t < scales)
            tl.store(low_scale + place + t, low, mask=place + t < scales)
    wait_for_previous(PDL)
    let_next_start(PDL)
    codes = tl.load(dt + row * dt_row + token[None, :] * dt_token + head[:, None], mask=there, other=0)
    n = tl.arange(0, N_TILE)
    # B and C as float16, each group's by another program.
    for part in range(tl.program_id(1), 2 * groups, tl.num_programs(1)):
        group = part % groups
        valid = (token < end)[:, None] & (n < D_STATE)[None, :]
        source = row * B_row + token[:, None] * B_token + group * D_STATE + n[None, :]
        target = (tl.program_id(0).to(tl.int64) * groups + group) * (TOKENS * D_STATE)
        target += t[:, None] * D_STATE + n[None, :]
        if part < groups:
            found = half(tl.load(B + source, mask=valid, other=0))
            tl.store(directions + target, found, mask=(n < D_STATE)[None, :])
        else:
            found = half(tl.load(C + source, mask=valid, other=0))
            tl.store(questions + target, found, mask=(n < D_STATE)[None, :])
    steps = discretized(codes, scale[:, None], bias[:, None], dt_min, dt_max, there)
    # Sums in float64, since what counts are their differences: kept as a float32 and the power of what that leaves.
    logs = (steps * rate[:, None]).to(tl.float64) * 1.4426950408889634
    decay = tl.cumsum(logs, 1)
    whole = tl.sum(logs, 1)
    high = decay.to(tl.float32)
    low = (decay - high.to(tl.float64)).to(tl.float32)
    largest, inverse_largest = power_of_two_above(tl.maximum(tl.max(steps, 1), _SMALLEST_STEP))
    part = steps * inverse_largest[:, None]
    of_head = tl.program_id(0).to(tl.int64) * heads + head
    place = of_head[:, None] * TOKENS + t[None, :]
    tl.store(coarse + place, high, mask=known[:, None])
    tl.store(fine + place, tl.exp2(low), mask=known[:, None])
    tl.store(share + place, tl.exp2(-low) * part, mask=known[:, None])
    tl.store(weight + place, tl.exp2((whole[:, None] - decay).to(tl.float32)) * part, mask=known[:, None])
    tl.store(carry + place, tl.exp2(high) * tl.exp2(low), mask=known[:, None])
    tl.store(total + of_head, tl.exp2(whole.to(tl.float32)), mask=known)
    tl.store(size + of_head, largest, mask=known)


@triton.jit
def _rounded(x):
    """Return `round_to_codes` of ``x``, and the same as float32."""
    clamped = tl.minimum(tl.maximum(x, -127.0), 127.0)
    shifted = clamped + 12582912.0
    return shifted.to(tl.int32, bitcast=True).to(tl.int8), shifted - 12582912.0


@triton.jit
def _states(
    x, x_scale, B_scale, directions, weight, total, size, state, state_scale, state_row, slots, starts, after,
    length, period, chunks, heads, x_row, x_token,
    HEADDIM: tl.constexpr, D_STATE: tl.constexpr, HEADS_A_GROUP: tl.constexpr,
    X_STEP: tl.constexpr, B_GROUP_STEP: tl.constexpr, B_STEP: tl.constexpr,
    ROUNDS: tl.constexpr, CODED: tl.constexpr, KEPT_STARTS: tl.constexpr, FRESH: tl.constexpr,
    TOKENS: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    group = head // HEADS_A_GROUP
    p = tl.program_id(1) * P_TILE + tl.arange(0, P_TILE)
    n = tl.program_id(2) * N_TILE + tl.arange(0, N_TILE)
    t = tl.arange(0, TOKENS)
    in_p, in_n = p < HEADDIM, n < D_STATE
    tile = in_n[:, None] & in_p[None, :]
    place = p[None, :] * D_STATE + n[:, None]
    x_factor = tl.load(x_scale + (head * HEADDIM + p) * X_STEP, mask=in_p, other=0.0)
    B_factor = tl.load(B_scale + group * B_GROUP_STEP + n * B_STEP, mask=in_n, other=0.0)
    # A coded state is held in units of its codes; ``unit`` is what a product of codes is in them.
    unit = B_factor[:, None] * x_factor[None, :]
    if CODED:
        which = tl.load(state_row + head * HEADDIM + p, mask=in_p, other=0).to(tl.int32)
        scale = tl.load(state_scale + which[None, :] * D_STATE + n[:, None], mask=tile, other=1.0)
        unit = unit / scale
    wait_for_previous(PDL)
    let_next_start(PDL)
    cells = HEADDIM * D_STATE
    slot = row if slots is None else tl.load(slots + row).to(tl.int64)
    home = (slot * heads + head) * cells + place
    before = tl.load(state + home, mask=tile & (not FRESH), other=0)
    h = before.to(tl.float32)
    kept = h
    first = row * chunks * heads + head
    if KEPT_STARTS or not CODED:
        tl.store(starts + first * cells + place, before, mask=tile)
    else:
        tl.store(starts + first * cells + place, h * scale, mask=tile)
    x += row * x_row + head * HEADDIM + p[None, :]
    directions += (row * chunks * (heads // HEADS_A_GROUP) + group) * (TOKENS * D_STATE)
    directions += t[None, :] * D_STATE + n[:, None]
    # A state that is rounded at the end of every chunk has nothing to add from an unfinished one.
    updates = length // period if KEPT_STARTS else chunks
    # Where the loop itself says how far, all loads are made ahead, those too that no product needs.
    for chunk in tl.range(0, updates, num_stages=3):
        if KEPT_STARTS:
            start = chunk * period
            end = start + period
        else:
            start, end = _span(chunk, length, period, TOKENS)
        of_head = first + chunk * heads
        token = start + t
        share = tl.load(weight + of_head * TOKENS + t)
        decay = tl.load(total + of_head)
        factor = tl.load(size + of_head)
        inputs = tl.load(x + token[:, None] * x_token, mask=(token < end)[:, None] & in_p[None, :], other=0)
        B_T = tl.load(
            directions + chunk * (heads // HEADS_A_GROUP * TOKENS * D_STATE), mask=in_n[:, None], other=0.0
        )
        high_share, low_share = split(share)
        high, low = _scaled(
            inputs,
            tl.broadcast_to(high_share[:, None], inputs.shape),
            tl.broadcast_to(low_share[:, None], inputs.shape),
        )
        new = tl.dot(B_T, low, tl.dot(B_T, high))
        h = tl.fma(h, tl.broadcast_to(decay, h.shape), (new * factor) * unit)
        if ROUNDS:
            if CODED:
                rounded, exact = _rounded(h)
            else:
                rounded = h.to(before.dtype)
                exact = rounded.to(tl.float32)
            if KEPT_STARTS:
                h = exact
                kept = exact
            else:
                rounds = end % period == 0
                h = tl.where(rounds, exact, h)
                kept = tl.where(rounds, exact, kept)
        else:
            kept = h
        next_start = starts + (of_head + heads) * cells + place
        if KEPT_STARTS:
            tl.store(next_start, rounded, mask=tile & (chunk + 1 < chunks))
        else:
            tl.store(next_start, h * scale if CODED else h, mask=tile & (chunk + 1 < chunks))
    tl.store(after + home, round_to_codes(kept) if CODED else kept, mask=tile)


@triton.jit
def _outputs(
    x, x_scale, B, B_scale, C, C_scale, D, coarse, fine, share, carry, size, questions,
    high_scale, low_scale, state_row, state_size, starts, y, shift,
    length, period, chunks, heads, x_row, x_token, B_row, B_token, y_row, y_token,
    HEADDIM: tl.constexpr, D_STATE: tl.constexpr, HEADS_A_GROUP: tl.constexpr,
    X_STEP: tl.constexpr, GROUP_STEP: tl.constexpr, STATE_STEP: tl.constexpr, CODED: tl.constexpr,
    TOKENS: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    P_TILES: tl.constexpr = (HEADDIM + P_TILE - 1) // P_TILE
    head = tl.program_id(0) // P_TILES
    chunk = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    group = head // HEADS_A_GROUP
    p = tl.program_id(0) % P_TILES * P_TILE + tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    t = tl.arange(0, TOKENS)
    in_p, in_n = p < HEADDIM, n < D_STATE
    start, end = _span(chunk, length, period, TOKENS)
    token = start + t
    there = token < end
    shared = token[:, None] * B_token + group * D_STATE + n[None, :]
    valid = there[:, None] & in_n[None, :]
    x_mask = there[:, None] & in_p[None, :]
    state_mask = in_p[:, None] & in_n[None, :]
    C_factor = tl.load(C_scale + group * GROUP_STEP)
    if STATE_STEP == 0:
        pair_size = tl.load(B_scale + group * GROUP_STEP) * C_factor
    x_factor = tl.load(x_scale + (head * HEADDIM + p) * X_STEP, mask=in_p, other=0.0)
    skip = tl.load(D + head)
    if CODED:
        which = tl.load(state_row + head * HEADDIM + p, mask=in_p, other=0).to(tl.int32)
        place = which[:, None] * D_STATE + n[None, :]
        largest = tl.load(state_size) * 2.0**-10
    wait_for_previous(PDL)
    let_next_start(PDL)
    # All loads stand first: the compiler moves none over the barriers of a product.
    b = tl.load(B + row * B_row + shared, mask=valid, other=0)
    c = tl.load(C + row * B_row + shared, mask=valid, other=0)
    of_head = (row * chunks + chunk) * heads + head
    starts += of_head * (HEADDIM * D_STATE)
    before = tl.load(starts + p[:, None] * D_STATE + n[None, :], mask=state_mask, other=0)
    if CODED:
        scale = tl.load(high_scale + place, mask=state_mask, other=0.0)
        rest = tl.load(low_scale + place, mask=state_mask, other=0.0)
    questions += ((row * chunks + chunk) * (heads // HEADS_A_GROUP) + group) * (TOKENS * D_STATE)
    asked = tl.load(questions + t[:, None] * D_STATE + n[None, :], mask=in_n[None, :], other=0.0)
    x += row * x_row + head * HEADDIM
    inputs = tl.load(x + token[:, None] * x_token + p[None, :], mask=x_mask, other=0)
    high_log = tl.load(coarse + of_head * TOKENS + t)
    low_power = tl.load(fine + of_head * TOKENS + t)
    part = tl.load(share + of_head * TOKENS + t)
    decayed = tl.load(carry + of_head * TOKENS + t)
    size_of_steps = tl.load(size + of_head)

    # C B^T; of codes with one scale it is exact.
    if STATE_STEP == 0:
        scores = tl.dot(c, tl.trans(b)).to(tl.float32)
    else:
        columns = tl.load(C_scale + group * GROUP_STEP + n, mask=in_n, other=0.0)
        pair = tl.load(B_scale + group * GROUP_STEP + n, mask=in_n, other=0.0) * columns
        pair_size, inverse_pair = power_of_two_above(tl.max(pair))
        high, low = split(number(c) * (pair * inverse_pair)[None, :])
        operand = tl.trans(half(b))
        scores = tl.dot(low, operand, tl.dot(high, operand))
    scores = tl.where(t[:, None] >= t[None, :], scores, 0.0)

    if CODED:
        high, low = _scaled(before, scale, rest)
    if not CODED or STATE_STEP != 0:
        h = before.to(tl.float32)
        if CODED:
            h = (high.to(tl.float32) + low.to(tl.float32)) * largest
        if STATE_STEP != 0:
            h = h * columns[None, :]
        largest, inverse_largest = power_of_two_above(tl.max(tl.abs(h)))
        high, low = split(h * inverse_largest)
    if STATE_STEP == 0:
        largest = largest * C_factor
    carried = tl.dot(asked, tl.trans(low), tl.dot(asked, tl.trans(high)))

    # The factors of a token's own scores and D, which goes onto their diagonal, are brought below 2**15.
    size_of_scores = tl.maximum(size_of_steps * pair_size, 2.0**-100)
    above_skip, _ = power_of_two_above(tl.abs(skip) / size_of_scores)
    factor = tl.minimum(shift, 32768.0 / above_skip)
    unit = low_power * (size_of_scores / factor)
    # Above 0 only where the scores are 0.
    between = tl.exp2(tl.minimum(high_log[:, None] - high_log[None, :], 0.0))
    mixed = scores * (between * (part * factor)[None, :])
    mixed += tl.where(t[:, None] == t[None, :], (skip / unit)[:, None], 0.0)
    operand = half(inputs)
    high, low = split(mixed)
    within = tl.dot(low, operand, tl.dot(high, operand))
    x_factor = tl.broadcast_to(x_factor[None, :], within.shape)
    result = tl.fma(within * unit[:, None], x_factor, carried * (decayed * largest)[:, None])
    y += row * y_row + head * HEADDIM
    tl.store(y + token[:, None] * y_token + p[None, :], result, mask=x_mask)


def size_of_states(state_scale: Tensor) -> Tensor:
    """Return a power of two above every state that codes under these scales can stand for, float32 ``[1]``."""
    return torch.exp2(torch.floor(torch.log2(state_scale.max().double() * 127)) + 1).float().view(1)


def scan_codes(
    x: Tensor,
    x_scale: Tensor,
    dt: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor,
    C: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    state_row: Tensor | None,
    state_size: Tensor | None,
    interval: int,
    y: Tensor,
    after: Tensor,
    *,
    scale_a_channel: bool,
    slots: Tensor | None = None,
    fresh: bool = False,
) -> None:
    """Run the scan; write ``y`` and the state after the last rounding (after all tokens for a float32 state).

    Args:
        x: int8 ``[B, L, H, P]``; a token's channels are neighbours, tokens and rows may lie apart (so in the rest).
        x_scale: float32 ``[1]`` or ``[H * P]``.
        dt: int8 ``[B, L, H]``.
        dt_scale: float32 ``[1]`` or ``[H]``.
        A: float32 ``[H]``.
        B: int8 ``[B, L, G, N]``.
        B_scale: float32 ``[1]``, ``[G]``, or ``[G * N]`` where ``scale_a_channel``.
        C: as B, with B's strides.
        C_scale: as B_scale.
        D: float32 ``[H]``.
        dt_bias: float32 ``[H]``.
        dt_min: lower limit of dt.
        dt_max: upper limit of dt.
        state: ``[B, H, P, N]`` before the first token, contiguous: float32, float16 or int8.
        state_scale: float32 ``[rows, N]``, contiguous, for an int8 state.
        state_row: int ``[H * P]``, the row of ``state_scale`` that each channel has.
        state_size: float32 ``[1]``, `size_of_states` of the scales.
        interval: tokens between two roundings; 0 for float32.
        y: float32 ``[B, L, H, P]``, channels of a token neighbours.
        after: as ``state``, written; may be ``state``.
        scale_a_channel: what ``[G * N]`` scales are told from ``[G]`` by.
        slots: int32 ``[B]``, where in ``state`` and ``after`` each row is; None for its own place.
        fresh: whether the sequences begin here: ``state`` is then taken for zeros and not read.
    """
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    period = interval or length
    tokens = min(_CHUNK, max(16, triton.next_power_of_2(min(period, length))))
    chunks = length // period * ceil(period / tokens) + ceil(length % period / tokens)
    kept_starts = bool(interval) and period <= tokens
    starts = torch.empty(
        (batch, chunks, heads, headdim, d_state),
        dtype=state.dtype if kept_starts else torch.float32,
        device=x.device,
    )
    p_tile = min(64, max(16, triton.next_power_of_2(headdim)))
    n_tile = max(32, triton.next_power_of_2(d_state))
    p_part, n_part = map(min, (p_tile, n_tile), _STATE_TILES[batch * heads <= _FEW])
    x_step, dt_step = int(x_scale.numel() > 1), int(dt_scale.numel() > 1)
    group_step = (d_state if scale_a_channel else 1) if B_scale.numel() > 1 else 0
    state_step = int(scale_a_channel and B_scale.numel() > 1)
    coarse, fine, share, weight, carry = torch.empty(
        (5, batch, chunks, heads, tokens), dtype=torch.float32, device=x.device
    )
    total, size = torch.empty((2, batch, chunks, heads), dtype=torch.float32, device=x.device)
    directions, questions = torch.empty(
        (2, batch, chunks, groups, tokens, d_state), dtype=torch.float16, device=x.device
    )
    coded = state_scale is not None and kept_starts
    scales = 0 if state_scale is None else state_scale.numel()
    high_scale, low_scale = torch.empty((2, scales), dtype=torch.float16, device=x.device)
    options = launch_options(x)
    _decays[batch * chunks, triton.cdiv(heads, _HEADS)](
        dt, dt_scale, dt_bias, A, B, C, state_scale, state_size,
        coarse, fine, share, weight, carry, total, size, directions, questions, high_scale, low_scale, dt_min, dt_max,
        length, period, chunks, heads, groups, scales, dt.stride(0), dt.stride(1), B.stride(0), B.stride(1),
        d_state, dt_step, coded, tokens, _HEADS, n_tile, num_warps=4, **options,
    )  # fmt: skip
    _states[batch * heads, triton.cdiv(headdim, p_part), triton.cdiv(d_state, n_part)](
        x, x_scale, B_scale, directions, weight, total, size, state, state_scale, state_row, slots, starts, after,
        length, period, chunks, heads, x.stride(0), x.stride(1),
        headdim, d_state, heads // groups, x_step, group_step, state_step,
        bool(interval), state_scale is not None, kept_starts, fresh, tokens, p_part, n_part,
        num_warps=4, **options,
    )  # fmt: skip
    # Sums of codes are at most N * 127**2: this brings them below 2**15, where two float16 terms hold them.
    shift = 2.0 ** (15 - ceil(log2(d_state * 127**2)))
    # Two warps where tiles are narrow, for the reason given at `_MANY_IN_PARTS` of the Hadamard transform.
    narrow = p_tile < 64
    _outputs[heads * triton.cdiv(headdim, p_tile), chunks, batch](
        x, x_scale, B, B_scale, C, C_scale, D, coarse, fine, share, carry, size, questions,
        high_scale, low_scale, state_row, state_size, starts, y, shift,
        length, period, chunks, heads, x.stride(0), x.stride(1), B.stride(0), B.stride(1), y.stride(0), y.stride(1),
        headdim, d_state, heads // groups, x_step, group_step, state_step,
        coded, tokens, p_tile, n_tile, num_warps=2 if narrow else 4,
        maxnreg=_OUTPUT_REGISTERS if coded and not narrow else None, **options,
    )  # fmt: skip


def _run(
    x: Tensor,
    x_scale: Tensor,
    dt: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor,
    C: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    heads, headdim, d_state = state.shape[1:]
    x, dt, B, C = x.contiguous(), dt.contiguous(), B.contiguous(), C.contiguous()
    state_row = state_size = None
    if state_scale is not None:
        state_size = size_of_states(state_scale)
        state_scale = state_scale.expand(state.shape[1:]).reshape(-1, d_state).contiguous()
        state_row = torch.arange(heads * headdim, dtype=torch.int32, device=x.device)
    width = max(B_scale.numel(), C_scale.numel())
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    after = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    scan_codes(
        x, x_scale, dt, dt_scale, A, B, B_scale.expand(width).contiguous(), C, C_scale.expand(width).contiguous(),
        D, dt_bias, dt_min, dt_max, state.contiguous(), state_scale, state_row, state_size, interval,
        y, after,
        scale_a_channel=True,
    )  # fmt: skip
    return y, after


def _supports(
    x: Tensor,
    x_scale: Tensor | None,
    dt: Tensor,
    dt_scale: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor | None,
    C: Tensor,
    C_scale: Tensor | None,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> str | None:
    if x_scale is None or dt_scale is None or B_scale is None or C_scale is None:
        return "scans codes; x, dt, B and C need scales"
    if B.shape[-1] > 256:
        return f"holds states of at most 256 columns, not {B.shape[-1]}"
    return None


ssd.register(Kernel("triton", "cuda", _run, _supports))
