"""Decode with Mamba-2 on GPUs: from in_proj's codes to the scan's output, and the rounding of states.

`step` does the convolution, dt and the scan of one token for every row and head. For few rows that is one launch, in
floats; for more, what heads share comes first, and the heads multiply integers on tensor cores. A reduced state is only
read: the tokens since its last rounding wait as codes (their dt as floats), and with cum_i the sum of the log decays up
to token i,

    y_j = exp(cum_j) C_j S + sum_{i <= j} exp(cum_j - cum_i) dt_i (C_j B_i) x_i + D x_j.

`round_states` carries the waiting tokens into the states of rows whose interval is full, all layers in one launch. What
is kept of a sequence lies in slots: a row of a batch names its slot, and the slot knows its position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.hadamard.triton import fast_silu, power_of_two_above
from ssmquant.ops.ssd.triton import added, discretized, number
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    wait_for_previous,
)

__all__ = ["BLOCK", "Constants", "Memory", "Sizes", "in_blocks", "in_order", "round_states", "step"]

_ALONE = 4
"""Rows up to which each program computes itself what heads share; for more, a launch of its own does it once."""
_HEADS = 16
"""Heads whose weights of tokens one program of that launch computes: with more, fewer programs read B again."""
BLOCK = 16
"""Waiting tokens of a channel that lie together in `Memory.x`."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a mixer: heads, headdim, ngroups, d_state, d_conv; ``interval`` 0 for a float32 state."""

    nheads: int
    headdim: int
    ngroups: int
    d_state: int
    d_conv: int
    interval: int

    @property
    def d_inner(self) -> int:
        """Channels of x."""
        return self.nheads * self.headdim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_inner + 2 * self.ngroups * self.d_state


@dataclass(frozen=True)
class Constants:
    """What a layer's step needs beside its inputs; with a dimension of layers in front, of all layers.

    Attributes:
        conv_weight: int8 ``[conv_dim, d_conv]``.
        conv_scale: float32 ``[conv_dim]``, scale of the input times scale of the weight.
        conv_bias: float32 ``[conv_dim]``.
        conv_inverse: float32 ``[conv_dim]``, reciprocal of the output's scale.
        x_scale: float32 ``[H * P]``.
        B_scale: float32 ``[G]``.
        C_scale: float32 ``[G]``.
        dt_scale: float32 ``[H]``.
        dt_bias: float32 ``[H]``.
        A: float32 ``[H]``.
        D: float32 ``[H]``.
        state_scale: float32 ``[rows, N]`` of an int8 state: one row, or as many for each group and only its heads';
            ``[1, N]`` of no meaning for another state.
        state_rows: int32 ``[H, 4]``, the rows of ``state_scale`` that a head has.
        state_choice: int32 ``[H * P]``, which of its head's rows each channel has.
        state_row: int32 ``[H * P]``, the row that each channel has: ``state_rows`` at ``state_choice``.
        state_size: float32 ``[1]``, `size_of_states` of the scales.
    """

    conv_weight: Tensor
    conv_scale: Tensor
    conv_bias: Tensor
    conv_inverse: Tensor
    x_scale: Tensor
    B_scale: Tensor
    C_scale: Tensor
    dt_scale: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    state_scale: Tensor
    state_rows: Tensor
    state_choice: Tensor
    state_row: Tensor
    state_size: Tensor

    def layer(self, index: int) -> Constants:
        """Return one layer's of all layers' constants."""
        return Constants(**{name: tensor[index] for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Memory:
    """What is kept of sequences, in slots; with a dimension of layers in front, of all layers.

    Attributes:
        ring: int8 ``[slots, d_conv, conv_dim]``, the newest inputs of the convolution.
        state: ``[slots, H, P, N]``.
        x: int8 ``[slots, ceil(interval / 16), H * P, 16]``, of the tokens that wait for a rounding, as the next two;
            16 tokens of a channel lie together, since they are summed over (`in_blocks`, `in_order`).
        B: int8 ``[slots, interval, G * N]``.
        dt: float32 ``[slots, interval, H]``, after bias, softplus and limits.
    """

    ring: Tensor
    state: Tensor
    x: Tensor
    B: Tensor
    dt: Tensor

    def layer(self, index: int) -> Memory:
        """Return one layer's of all layers' memory."""
        return Memory(**{name: tensor[index] for name, tensor in vars(self).items()})


def in_blocks(x: Tensor) -> Tensor:
    """Return codes ``[..., T, C]`` as `Memory.x` has them, ``[..., ceil(T / 16), C, 16]``, filled up with zeros."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % BLOCK))
    blocks: Tensor = padded.unflatten(-2, (-1, BLOCK)).transpose(-1, -2)
    return blocks


def in_order(x: Tensor) -> Tensor:
    """Return codes ``[..., blocks, C, 16]`` of `Memory.x` as ``[..., 16 * blocks, C]``."""
    return x.transpose(-1, -2).flatten(-3, -2)


@triton.jit
def _old_taps(ring, weight, c, valid, position, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """Return the convolution's integer sum over the tokens before this one."""
    total = tl.zeros(c.shape, tl.int32)
    for back in tl.static_range(1, TAPS):
        place = (position - back + TAPS) % TAPS
        old = tl.load(ring + place * CHANNELS + c, mask=valid & (position >= back), other=0)
        total += old.to(tl.int32) * tl.load(weight + c * TAPS + (TAPS - 1 - back), mask=valid, other=0).to(
            tl.int32
        )
    return total


@triton.jit
def _convolved(total, newest, weight, scale, bias, inverse, c, valid, TAPS: tl.constexpr):
    """Return the codes of the convolution's output, given the sum over the tokens before and the newest inputs."""
    total += newest.to(tl.int32) * tl.load(weight + c * TAPS + (TAPS - 1), mask=valid, other=0).to(tl.int32)
    y = total.to(tl.float32) * tl.load(scale + c, mask=valid, other=0.0) + tl.load(
        bias + c, mask=valid, other=0.0
    )
    return quantize(fast_silu(y), tl.load(inverse + c, mask=valid, other=0.0))


@triton.jit
def _channels(
    ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, c, valid, old, keep, TAPS: tl.constexpr
):  # fmt: skip
    """Return the codes of the convolution's output for some channels, given `_old_taps`; keep their newest input."""
    new = tl.load(projected + c, mask=valid, other=0)
    tl.store(newest + c, new, mask=valid & keep)
    return _convolved(old, new, conv_weight, conv_scale, conv_bias, conv_inverse, c, valid, TAPS)


@triton.jit
def _digits(values, COUNT: tl.constexpr):
    """Return rows of float32 values as a tuple of COUNT int8 digits, and each row's size.

    Digit d is worth ``2**(-6 - 7 d)`` of the size, a power of two; at most half of the last digit's worth is lost.
    """
    size, inverse_size = power_of_two_above(tl.max(tl.abs(values), 1))
    rest = values * inverse_size[:, None] * 64.0  # in this order: 64 times the largest reciprocal is infinite
    digits = ()
    for _ in tl.static_range(COUNT):
        rounded = rest + 12582912.0  # 1.5 * 2**23: the digit, rounded half to even, stands in the low bits
        digit = rounded.to(tl.int32, bitcast=True).to(tl.int8)
        digits = digits + (digit,)  # type: ignore[assignment]  # noqa: RUF005  (no unpacking in Triton)
        rest = (rest - (rounded - 12582912.0)) * 128.0
    return digits, size


@triton.jit
def _in_pairs(products):
    """Return int32 products with digits ``[rows, digits]`` as float32 ``[rows, pairs]``, in units of a second digit.

    Two digits of `_digits` are one number of 28 bits at most: half as many conversions and products of floats.
    """
    high, low = tl.split(tl.reshape(products, (products.shape[0], products.shape[1] // 2, 2)))
    return (high * 128 + low).to(tl.float32)


@triton.jit
def _worth(pair):
    """Return what a pair of digits is worth as `_in_pairs` has it, in sizes of `_digits`."""
    return tl.exp2(-13.0 - 14.0 * pair.to(tl.float32))


@triton.jit
def _waiting(
    waiting_B, waiting_dt, slot, group, head, in_heads, n, k, j,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, INTERVAL: tl.constexpr,
):  # fmt: skip
    """Load what waits of a group's B ``[TOKENS, N]`` and of heads' dt ``[heads, TOKENS]``, that twice: one token on."""
    waits, in_n = k < j, n < D_STATE
    B_home = waiting_B + slot * (INTERVAL * GROUPS * D_STATE) + group * D_STATE
    old_B = tl.load(
        B_home + n[None, :] + k[:, None] * (GROUPS * D_STATE), mask=waits[:, None] & in_n[None, :], other=0
    )
    times = waiting_dt + slot * (INTERVAL * HEADS) + head[:, None] + k[None, :] * HEADS
    steps = tl.load(times, mask=waits[None, :] & in_heads[:, None], other=0.0)
    behind = tl.load(times + HEADS, mask=(k + 1 < j)[None, :] & in_heads[:, None], other=0.0)
    return old_B, steps, behind


@triton.jit
def _weights(waiting, B, C, both, new, rate, k, j):
    """Return what weighs the waiting tokens ``[heads, TOKENS]`` and the new one, and what is left of the state.

    Args:
        waiting: of `_waiting`. The decay after a token is the sum over the tokens behind it, added from the last on: a
            sum of terms of one sign is never the small difference of large ones.
        B: codes ``[N]``.
        C: codes ``[N]``.
        both: product of their scales.
        new: dt ``[heads]``.
        rate: logarithm of the decay over dt, to base two, ``[heads]``.
        k: waiting tokens ``[TOKENS]``.
        j: how many wait.
    """
    old_B, steps, behind = waiting
    row_of_C = tl.where(tl.arange(0, 16)[:, None] == 0, C[None, :], 0).to(tl.int8)
    match = tl.sum(tl.dot(row_of_C, tl.trans(old_B)), 0).to(tl.float32) * both
    own_match = tl.sum(B.to(tl.int32) * C.to(tl.int32), 0).to(tl.float32) * both
    behind = tl.where(k[None, :] + 1 == j, new[:, None], behind)
    # The hardware's exponential is off by as many ulp as its exponent is large, and then the result is small.
    weight = tl.exp2(tl.cumsum(behind * rate[:, None], 1, reverse=True)) * steps * match[None, :]
    return weight, new * own_match, tl.exp2((tl.sum(steps, 1) + new) * rate)


@triton.jit
def _prepare(
    projected, slots, positions, conv_weight, conv_scale, conv_bias, conv_inverse, B_scale, C_scale, dt_scale,
    dt_bias, A, state_scale, ring, waiting_B, waiting_dt, asked, given, asked_digits, asked_sizes, token_digits,
    token_sizes, own, gone, dt_min, dt_max, projected_row,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, TAPS: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, SCALE_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr,
    N_TILE: tl.constexpr, TOKENS: tl.constexpr, HEADS_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What heads share of a row: first programs for some heads of a group, then for four rows of its scales."""
    INNER: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = INNER + 2 * GROUPS * D_STATE
    OF_GROUP: tl.constexpr = HEADS // GROUPS
    PARTS: tl.constexpr = (OF_GROUP + HEADS_TILE - 1) // HEADS_TILE
    SCALE_PARTS: tl.constexpr = (OWN_ROWS + 3) // 4 if CODED else 0
    let_next_start(PDL)
    program = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    # Nothing but in_proj's output is written by the launches of this step that may still run: the rest is read ahead.
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    j = position % INTERVAL if INTERVAL > 0 else 0
    projected += row * projected_row + INNER
    ring += slot * (TAPS * CHANNELS)
    newest = ring + position % TAPS * CHANNELS
    n = tl.arange(0, N_TILE)
    in_n = n < D_STATE
    if program >= GROUPS * PARTS:
        # C times the state's scales, which lie along the sum, as integers: four digits for each row of scales.
        group = (program - GROUPS * PARTS) // SCALE_PARTS
        own_row = (program - GROUPS * PARTS) % SCALE_PARTS * 4 + tl.arange(0, 4)
        known = (own_row < OWN_ROWS)[:, None] & in_n[None, :]
        first_row = group * OWN_ROWS if SCALE_ROWS > OWN_ROWS else 0
        scale = tl.load(
            state_scale + (first_row + own_row)[:, None] * D_STATE + n[None, :], mask=known, other=0.0
        )
        scale *= tl.load(C_scale + group)
        C_channel = INNER + (GROUPS + group) * D_STATE + n
        C_old = _old_taps(ring, conv_weight, C_channel, in_n, position, CHANNELS, TAPS)
        wait_for_previous(PDL)
        C = _channels(
            ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, C_channel, in_n, C_old, False,
            TAPS,
        )  # fmt: skip
        questions, question_sizes = _digits(scale * number(C)[None, :], 4)
        here = (row * GROUPS + group) * OWN_ROWS + own_row
        into = asked_digits + (here * 4)[:, None] * D_STATE + n[None, :]
        for digit in tl.static_range(4):
            tl.store(into + digit * D_STATE, questions[digit], mask=known)
        tl.store(asked_sizes + here, question_sizes, mask=own_row < OWN_ROWS)
    else:
        group = program // PARTS
        first = program % PARTS == 0
        place = program % PARTS * HEADS_TILE + tl.arange(0, HEADS_TILE)
        in_heads = place < OF_GROUP
        head = group * OF_GROUP + place
        k = tl.arange(0, TOKENS)
        rate = tl.load(A + head, mask=in_heads, other=0.0) * 1.4426950408889634
        step_scale = tl.load(dt_scale + head, mask=in_heads, other=0.0)
        bias = tl.load(dt_bias + head, mask=in_heads, other=0.0)
        B_channel = INNER + group * D_STATE + n
        C_channel = B_channel + GROUPS * D_STATE
        if INTERVAL > 0:
            waiting = _waiting(
                waiting_B, waiting_dt, slot, group, head, in_heads, n, k, j, HEADS, GROUPS, D_STATE, INTERVAL
            )
        B_old = _old_taps(ring, conv_weight, B_channel, in_n, position, CHANNELS, TAPS)
        C_old = _old_taps(ring, conv_weight, C_channel, in_n, position, CHANNELS, TAPS)
        B_factor = tl.load(B_scale + group)
        C_factor = tl.load(C_scale + group)
        wait_for_previous(PDL)
        code = tl.load(projected + CHANNELS + head, mask=in_heads, other=0)
        B = _channels(
            ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, B_channel, in_n, B_old, first,
            TAPS,
        )  # fmt: skip
        C = _channels(
            ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, C_channel, in_n, C_old, first,
            TAPS,
        )  # fmt: skip
        new = discretized(code, step_scale, bias, dt_min, dt_max, in_heads)
        of_head = row * HEADS + head
        if INTERVAL > 0:
            B_home = waiting_B + slot * (INTERVAL * GROUPS * D_STATE) + group * D_STATE + n
            tl.store(B_home + j * (GROUPS * D_STATE), B, mask=in_n & first)
            tl.store(waiting_dt + slot * (INTERVAL * HEADS) + j * HEADS + head, new, mask=in_heads)
            weight, of_new, left = _weights(waiting, B, C, B_factor * C_factor, new, rate, k, j)
            target = token_digits + (of_head * (4 * TOKENS))[:, None] + k[None, :]
            digits, size = _digits(weight, 3)
            for digit in tl.static_range(3):
                tl.store(target + digit * TOKENS, digits[digit], mask=in_heads[:, None])
            tl.store(token_sizes + of_head, size, mask=in_heads)
            tl.store(own + of_head, of_new, mask=in_heads)
            tl.store(gone + of_head, left, mask=in_heads)
        else:
            tl.store(own + of_head, new, mask=in_heads)
            tl.store(gone + of_head, tl.exp2(new * rate), mask=in_heads)
        if not CODED:
            of_group = (row * GROUPS + group) * D_STATE + n
            tl.store(asked + of_group, number(C) * C_factor, mask=in_n & first)
            tl.store(given + of_group, number(B) * B_factor, mask=in_n & first)


@triton.jit
def _step(
    projected, slots, positions, conv_weight, conv_scale, conv_bias, conv_inverse, x_scale, D, state_rows,
    state_choice, ring, state, waiting_x, asked, given, asked_digits, asked_sizes, token_digits, token_sizes, own,
    gone, y, projected_row,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, TAPS: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, SCALE_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr,
    P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of one row, after `_prepare`."""
    INNER: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = INNER + 2 * GROUPS * D_STATE
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    row = tl.program_id(1).to(tl.int64)
    let_next_start(PDL)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    j = position % INTERVAL if INTERVAL > 0 else 0
    p = tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    i = tl.arange(0, TOKENS)
    r = tl.arange(0, 16)  # four digits for each of the state's four rows of scales
    pair = tl.arange(0, 8)
    in_p, in_n = p < HEADDIM, n < D_STATE
    tile = in_p[:, None] & in_n[None, :]
    c = head * HEADDIM + p
    projected += row * projected_row + INNER
    ring += slot * (TAPS * CHANNELS)
    newest = ring + position % TAPS * CHANNELS
    x_old = _old_taps(ring, conv_weight, c, in_p, position, CHANNELS, TAPS)
    skip = tl.load(D + head)
    x_factor = tl.load(x_scale + c, mask=in_p, other=0.0)
    if CODED:
        choice = tl.load(state_choice + c, mask=in_p, other=0)
        own_row = tl.load(state_rows + head * 4 + r // 4)
        pair_row = tl.load(state_rows + head * 4 + pair // 2)
        if SCALE_ROWS > OWN_ROWS:
            own_row -= group * OWN_ROWS
            pair_row -= group * OWN_ROWS
        own_row += (row * GROUPS + group) * OWN_ROWS
        pair_row += (row * GROUPS + group) * OWN_ROWS
    # The large loads last: they go on to shared memory, and what is behind them in the program waits for that.
    block = slot * ((INTERVAL + BLOCK - 1) // BLOCK)
    if INTERVAL > 0:
        x_home = waiting_x + ((block + i // BLOCK)[None, :] * INNER + c[:, None]) * BLOCK + i[None, :] % BLOCK
        begun = i // BLOCK * BLOCK < j  # whole blocks: what waits in them for later is multiplied by zeros
        old_x = tl.load(x_home, mask=begun[None, :] & in_p[:, None], other=0)
    home = state + (slot * HEADS + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    before = tl.load(home, mask=tile, other=0)
    wait_for_previous(PDL)
    of_head = row * HEADS + head
    own_weight, forgotten = tl.load(own + of_head), tl.load(gone + of_head)
    if CODED:
        digit = tl.load(
            asked_digits + (own_row * 4 + r % 4)[:, None] * D_STATE + n[None, :], mask=in_n[None, :], other=0
        )
        asked_size = tl.load(asked_sizes + pair_row)
    else:
        question = tl.load(asked + (row * GROUPS + group) * D_STATE + n, mask=in_n, other=0.0)
    if INTERVAL > 0:
        t = tl.arange(0, 8)  # three digits of the tokens' weights; a matrix product has eight columns or more
        token_digit = tl.load(
            token_digits + (of_head * 4 + t)[:, None] * TOKENS + i[None, :], mask=(t < 3)[:, None], other=0
        )
        token_size = tl.load(token_sizes + of_head)
    else:
        direction = tl.load(given + (row * GROUPS + group) * D_STATE + n, mask=in_n, other=0.0)
    x = _channels(
        ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, c, in_p, x_old, True, TAPS
    )
    new_x = number(x) * x_factor
    if INTERVAL > 0:
        tl.store(waiting_x + ((block + j // BLOCK) * INNER + c) * BLOCK + j % BLOCK, x, mask=in_p)
        worth = token_size * _worth(tl.arange(0, 4))
        within = tl.sum(_in_pairs(tl.dot(old_x, tl.trans(token_digit))) * worth[None, :], 1)
        if CODED:
            worth = asked_size * _worth(pair % 2) * forgotten
            parts = _in_pairs(tl.dot(before, tl.trans(digit))) * worth[None, :]
            result = tl.sum(tl.where((pair // 2)[None, :] == choice[:, None], parts, 0.0), 1)
        else:
            result = tl.sum(before.to(tl.float32) * question[None, :], 1) * forgotten
        result += within * x_factor + new_x * own_weight
    else:
        h = before * forgotten + (new_x * own_weight)[:, None] * direction[None, :]
        tl.store(home, h, mask=tile)
        result = tl.sum(h * question[None, :], 1)
    tl.store(y + row * INNER + c, result + skip * new_x, mask=in_p)


@triton.jit
def _step_alone(
    projected, slots, positions, conv_weight, conv_scale, conv_bias, conv_inverse, x_scale, B_scale, C_scale, dt_scale,
    dt_bias, A, D, state_scale, state_row, ring, state, waiting_x, waiting_B, waiting_dt, y, dt_min, dt_max,
    projected_row,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, TAPS: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of one row, without `_prepare`: for few rows, where a launch takes longer than doing all for each head.

    All that is not of this token is read while in_proj still runs, and the state multiplied by its scales.
    """
    INNER: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = INNER + 2 * GROUPS * D_STATE
    let_next_start(PDL)
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    first = head % (HEADS // GROUPS) == 0
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    p = tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    in_p, in_n = p < HEADDIM, n < D_STATE
    tile = in_p[:, None] & in_n[None, :]
    c = head * HEADDIM + p
    home = state + (slot * HEADS + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    before = tl.load(home, mask=tile, other=0)
    if CODED:
        of_channel = tl.load(state_row + c, mask=in_p, other=0)
        h = number(before) * tl.load(
            state_scale + of_channel[:, None] * D_STATE + n[None, :], mask=tile, other=0.0
        )
    else:
        h = before.to(tl.float32)
    rate = tl.load(A + head) * 1.4426950408889634
    forgotten = 1.0
    if INTERVAL > 0:
        i = tl.arange(0, TOKENS)
        j = position % INTERVAL
        block = slot * ((INTERVAL + BLOCK - 1) // BLOCK)
        B_home = waiting_B + slot * (INTERVAL * GROUPS * D_STATE) + group * D_STATE + n
        dt_home = waiting_dt + slot * (INTERVAL * HEADS) + head
        # All places of an interval, so that no address waits for the position; what is not yet there weighs nothing.
        there = i < INTERVAL
        steps = tl.load(dt_home + i * HEADS, mask=there, other=0.0)
        known = there[:, None] & in_n[None, :]
        old_B = tl.load(B_home[None, :] + i[:, None] * (GROUPS * D_STATE), mask=known, other=0)
        x_home = waiting_x + ((block + i // BLOCK)[None, :] * INNER + c[:, None]) * BLOCK + i[None, :] % BLOCK
        old_x = tl.load(x_home, mask=there[None, :] & in_p[:, None], other=0)
        steps = tl.where(i < j, steps, 0.0)
        # The decay after a token but for the new one's, as the difference of sums in float64, which loses nothing.
        logs = (steps * rate).to(tl.float64)
        total = tl.sum(logs, 0)
        kept = tl.exp2((total - tl.cumsum(logs, 0)).to(tl.float32)) * steps
        forgotten = tl.exp2(total.to(tl.float32))
    projected += row * projected_row + INNER
    ring += slot * (TAPS * CHANNELS)
    newest = ring + position % TAPS * CHANNELS
    B_channel = INNER + group * D_STATE + n
    C_channel = B_channel + GROUPS * D_STATE
    x_old = _old_taps(ring, conv_weight, c, in_p, position, CHANNELS, TAPS)
    B_old = _old_taps(ring, conv_weight, B_channel, in_n, position, CHANNELS, TAPS)
    C_old = _old_taps(ring, conv_weight, C_channel, in_n, position, CHANNELS, TAPS)
    x_factor = tl.load(x_scale + c, mask=in_p, other=0.0)
    B_factor, C_factor = tl.load(B_scale + group), tl.load(C_scale + group)
    step_scale, bias, skip = tl.load(dt_scale + head), tl.load(dt_bias + head), tl.load(D + head)
    wait_for_previous(PDL)
    code = tl.load(projected + CHANNELS + head)
    C = _channels(
        ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, C_channel, in_n, C_old, first, TAPS
    )  # fmt: skip
    B = _channels(
        ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, B_channel, in_n, B_old, first, TAPS
    )  # fmt: skip
    x = _channels(
        ring, newest, projected, conv_weight, conv_scale, conv_bias, conv_inverse, c, in_p, x_old, True, TAPS
    )
    new = discretized(code, step_scale, bias, dt_min, dt_max, True)
    decay = tl.exp2(new * rate)
    question, answer, new_x = number(C), number(B), number(x) * x_factor
    both = B_factor * C_factor
    if INTERVAL > 0:
        tl.store(B_home + j * (GROUPS * D_STATE), B, mask=in_n & first)
        tl.store(dt_home + j * HEADS, new)
        tl.store(waiting_x + ((block + j // BLOCK) * INNER + c) * BLOCK + j % BLOCK, x, mask=in_p)
        result = tl.sum(h * question[None, :], 1) * (C_factor * (forgotten * decay))
        match = tl.sum(number(old_B) * question[None, :], 1)  # an integer, and exact
        weight = match * (kept * (decay * both))
        result += tl.sum(number(old_x) * weight[None, :], 1) * x_factor
        result += new_x * (new * (tl.sum(answer * question, 0) * both))
    else:
        h = h * decay + (new_x * new)[:, None] * (answer * B_factor)[None, :]
        tl.store(home, h, mask=tile)
        result = tl.sum(h * question[None, :], 1) * C_factor
    tl.store(y + row * INNER + c, result + skip * new_x, mask=in_p)


@triton.jit
def _round_states(
    slots, x_scale, B_scale, A, state_scale, state_row, state, waiting_x, waiting_B, waiting_dt,
    all_slots, scale_rows,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, INTERVAL: tl.constexpr,
    CODED: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    INNER: tl.constexpr = HEADS * HEADDIM
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    layer = tl.program_id(2).to(tl.int64)
    slot = layer * all_slots + tl.load(slots + tl.program_id(1))
    p = tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    i = tl.arange(0, TOKENS)
    in_p, in_n, there = p < HEADDIM, n < D_STATE, i < INTERVAL
    tile = in_p[:, None] & in_n[None, :]
    c = head * HEADDIM + p
    steps = tl.load(waiting_dt + (slot * INTERVAL + i) * HEADS + head, mask=there, other=0.0)
    block = slot * ((INTERVAL + BLOCK - 1) // BLOCK) + i // BLOCK
    x = tl.load(
        waiting_x + (block[:, None] * INNER + c[None, :]) * BLOCK + i[:, None] % BLOCK,
        mask=there[:, None] & in_p[None, :],
        other=0,
    )
    B = tl.load(
        waiting_B + ((slot * INTERVAL + i[:, None]) * GROUPS + group) * D_STATE + n[None, :],
        mask=there[:, None] & in_n[None, :], other=0,
    )  # fmt: skip
    home = state + (slot * HEADS + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    kept = tl.load(home, mask=tile, other=0)
    h = kept.to(tl.float32)
    if CODED:
        which = tl.load(state_row + layer * INNER + c, mask=in_p, other=0) + layer * scale_rows
        scale = tl.load(state_scale + which[:, None] * D_STATE + n[None, :], mask=tile, other=1.0)
        h = h * scale
    x_factor = tl.load(x_scale + layer * INNER + c, mask=in_p, other=0.0)
    logs = (steps * tl.load(A + layer * HEADS + head)).to(tl.float64) * 1.4426950408889634
    total = tl.sum(logs, 0)
    largest, inverse_largest = power_of_two_above(tl.max(steps))
    weight = tl.exp2((total - tl.cumsum(logs, 0)).to(tl.float32)) * (steps * inverse_largest)
    new = added(x, weight, B) * (x_factor * (largest * tl.load(B_scale + layer * GROUPS + group)))[:, None]
    h = h * tl.exp2(total.to(tl.float32)) + new
    if CODED:
        tl.store(home, quantize(h, reciprocal(scale)), mask=tile)
    else:
        tl.store(home, h.to(kept.dtype), mask=tile)


def _tiles(sizes: Sizes) -> tuple[int, int, int]:
    """Return the tiles of headdim, d_state and waiting tokens."""
    return (
        max(16, triton.next_power_of_2(sizes.headdim)),
        max(32, triton.next_power_of_2(sizes.d_state)),
        max(32, triton.next_power_of_2(sizes.interval)),
    )


def step(
    projected: Tensor,
    slots: Tensor,
    positions: Tensor,
    constants: Constants,
    memory: Memory,
    sizes: Sizes,
    dt_limit: tuple[float, float],
    y: Tensor,
) -> None:
    """Run convolution and scan for one token of each row; keep what the next needs (positions stay).

    Args:
        projected: int8 ``[M, d_in_proj]``: z, x, B, C, dt.
        slots: int32 ``[M]``, the slot of each row, all different.
        positions: int32 ``[slots]``, tokens that each has seen before.
        constants: of the layer.
        memory: of the layer, updated.
        sizes: of the mixer.
        dt_limit: lower and upper limit of dt.
        y: float32 ``[M, H * P]``, written.
    """
    p_tile, n_tile, tokens = _tiles(sizes)
    c, m, s = constants, memory, sizes
    rows, own_rows = len(projected), max(len(c.state_scale) // s.ngroups, 1)
    coded = m.state.element_size() == 1
    options = launch_options(projected)
    of_mixer = (s.nheads, s.headdim, s.ngroups, s.d_state, s.d_conv)
    convolution = (c.conv_weight, c.conv_scale, c.conv_bias, c.conv_inverse)
    if rows <= _ALONE:
        _step_alone[s.nheads, rows](
            projected, slots, positions, *convolution, c.x_scale, c.B_scale, c.C_scale, c.dt_scale, c.dt_bias, c.A, c.D,
            c.state_scale, c.state_row, m.ring, m.state, m.x, m.B, m.dt, y, *dt_limit, projected.stride(0), *of_mixer,
            s.interval, coded, p_tile, n_tile, tokens, BLOCK, num_warps=4, **options,
        )  # fmt: skip
        return
    new = y.new_empty
    asked, given = new(rows, s.ngroups, s.d_state), new(rows, s.ngroups, s.d_state)
    asked_digits = new(rows, s.ngroups, own_rows, 4, s.d_state, dtype=torch.int8)
    asked_sizes = new(rows, s.ngroups, own_rows)
    token_digits = new(rows, s.nheads, 4, tokens, dtype=torch.int8)
    token_sizes, own, gone = new(rows, s.nheads), new(rows, s.nheads), new(rows, s.nheads)
    between = (asked, given, asked_digits, asked_sizes, token_digits, token_sizes, own, gone)
    of_state = (s.interval, coded, len(c.state_scale), own_rows)
    parts = triton.cdiv(s.nheads // s.ngroups, _HEADS) + (triton.cdiv(own_rows, 4) if coded else 0)
    _prepare[s.ngroups * parts, rows](
        projected, slots, positions, *convolution, c.B_scale, c.C_scale, c.dt_scale, c.dt_bias, c.A, c.state_scale,
        m.ring, m.B, m.dt, *between, *dt_limit, projected.stride(0), *of_mixer, *of_state, n_tile, tokens, _HEADS,
        num_warps=4, **options,
    )  # fmt: skip
    _step[s.nheads, rows](
        projected, slots, positions, *convolution, c.x_scale, c.D, c.state_rows, c.state_choice, m.ring, m.state, m.x,
        *between, y, projected.stride(0), *of_mixer, *of_state, p_tile, n_tile, tokens, BLOCK,
        # Never four where codes are multiplied: Triton 3.6 then takes wgmma and points it outside of shared memory.
        num_warps=2 if s.interval else 4, **options,
    )  # fmt: skip


def round_states(slots: Tensor, constants: Constants, memory: Memory, sizes: Sizes) -> None:
    """Carry a full interval of waiting tokens into the states of some slots, in all layers.

    Args:
        slots: int32 ``[M]``, those whose position is a multiple of the interval.
        constants: of all layers.
        memory: of all layers, updated.
        sizes: of the mixers.
    """
    p_tile, n_tile, tokens = _tiles(sizes)
    c, m = constants, memory
    layers, all_slots = m.state.shape[:2]
    _round_states[sizes.nheads, len(slots), layers](
        slots, c.x_scale, c.B_scale, c.A, c.state_scale, c.state_row,
        m.state, m.x, m.B, m.dt, all_slots, c.state_scale.shape[1],
        sizes.nheads, sizes.headdim, sizes.ngroups, sizes.d_state, sizes.interval, m.state.element_size() == 1,
        p_tile, n_tile, tokens, BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
