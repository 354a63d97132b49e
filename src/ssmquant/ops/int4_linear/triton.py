# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"
# ruff: noqa: RUF005, SIM108  (Triton compiles neither unpacking into a tuple nor every conditional expression)
"""`int4_linear` on NVIDIA GPUs: exact integer sums a group, groups added in the reference's order, bit for bit.

The kernels read their own arrangement of the checkpoint's bytes, of the same size (`arrange`): byte j of a
group holds code j in its low and code j + size / 2 in its high nibble, so that either half of a group is
multiplied with neighbouring codes of x; scales lie a group after the other. A nibble becomes an int8 of 16
times its code by a mask and at most a shift; the sum of a group is then 16 times too large, which its scale
takes back exactly.

`_rows` is for few tokens (dp4a, 16-byte loads), `_tiles` for the rest (tensor cores, the weight through
registers). The order of the groups is part of the result, so K is never split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ssmquant.errors import InputError
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int8_linear.triton import (
    MAX_NORM_TOKENS,
    contiguous,
    expect_one_target,
    finish,
    has_descriptors,
    normed_words,
    tile_of,
    workspace,
)
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import (
    dot4,
    interpreted,
    launch_options,
    let_next_start,
    reciprocal,
    wait_for_previous,
)
from ssmquant.ops.tuning import Tile

__all__ = ["arrange", "linear_int4", "norm_linear_int4"]

_MAX_NORM_K = 16384


def arrange(packed: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the checkpoint's bytes and scales as the kernels read them.

    Args:
        packed: uint8 ``[N, K / 2]``, see `packing`.
        weight_scale: float32 ``[N, groups]``.

    Returns:
        uint8 ``[N, K / 2]`` and float32 ``[groups, N]``.
    """
    n, groups = weight_scale.shape
    low, high = unpack_int4(packed).view(n, groups, 2, -1).unbind(2)
    return ((low & 0xF) | (high << 4)).view(torch.uint8).view(n, -1), weight_scale.T.contiguous()


@triton.jit
def _rows(
    x, gain, eps, x_scale, weight, weight_scale, bias, scale_out, out, residual, codes, N, words, slots,
    M: tl.constexpr, X_TOKENS: tl.constexpr, OUT_CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr,
    HALF: tl.constexpr, GROUPS: tl.constexpr, AHEAD: tl.constexpr, NORM_WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """M tokens times BLOCK_N rows of the weight, group after group, loaded AHEAD groups before they are multiplied.

    A row of the weight is ``words`` int32 of eight codes; HALF of them are a group. x is int32 ``[M, 2 *
    words]``; with a gain it is the float hidden ``[M, 8 * words]`` whose norm is quantised first, into a slot
    of ``codes``: programs that share a slot write the same there.
    """
    let_next_start(PDL)
    program = tl.program_id(0)
    rows = program * BLOCK_N + tl.arange(0, BLOCK_N)
    word = tl.arange(0, HALF)
    w_at = weight + ((rows % N).to(tl.int64) * words)[:, None] + word[None, :]
    scale_at = weight_scale + rows % N
    w = ()
    scales = ()
    for group in tl.static_range(AHEAD):
        w = w + (tl.load(w_at + group * HALF, eviction_policy="evict_first"),)
        scales = scales + (tl.load(scale_at + group * N),)
    if gain is not None:
        columns = tl.arange(0, NORM_WORDS)[:, None] * 4 + tl.arange(0, 4)[None, :]
        gains = tl.load(gain + columns, mask=columns < words * 8, other=0.0)
        inverse = reciprocal(tl.load(x_scale))
    wait_for_previous(PDL)
    if gain is not None:
        x_words = codes + (program % slots) * (M * words * 2)
        for m in tl.static_range(M):
            token = normed_words(
                x + m * words * 8, gains, eps, inverse, columns, columns < words * 8, words * 8
            )
            here = tl.arange(0, NORM_WORDS)
            tl.store(x_words + m * words * 2 + here, token, mask=here < words * 2)
        tl.debug_barrier()  # the words change threads
    else:
        x_words = x
    # As wide as the weight's, so that a thread loads the words that its part of the weight is multiplied with.
    x_at = x_words + (rows * 0)[:, None] + word[None, :]
    totals = ()
    for _ in tl.static_range(M):
        totals = totals + (tl.zeros((BLOCK_N,), tl.float32),)
    for group in tl.static_range(GROUPS):
        if group + AHEAD < GROUPS:
            w = w + (tl.load(w_at + (group + AHEAD) * HALF, eviction_policy="evict_first"),)
            scales = scales + (tl.load(scale_at + (group + AHEAD) * N),)
        low = (w[group] << 4) & -252645136  # 0xF0F0F0F0
        high = w[group] & -252645136
        sums = ()
        for m in tl.static_range(M):
            part = x_at + m * words * 2 + group * (2 * HALF)
            products = dot4(low, tl.load(part), 0, ASSEMBLY)
            products = dot4(high, tl.load(part + HALF), products, ASSEMBLY)
            sums = sums + (totals[m] + (tl.sum(products, axis=1) >> 4).to(tl.float32) * scales[group],)
        totals = sums
    for m in tl.static_range(M):
        y = totals[m] * tl.load(x_scale + (m if X_TOKENS else 0))
        finish(y, bias, scale_out, out, residual, rows * 0 + m, rows, rows < N, N, OUT_CHANNELS)


@triton.jit
def _low_nibbles(w, ASSEMBLY: tl.constexpr):
    """Return 16 times the low nibbles of int8 bytes, four bytes an instruction."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }", "=r,r", [w], dtype=tl.int8,
            is_pure=True, pack=4,
        )  # fmt: skip
    return w << 4


@triton.jit
def _high_nibbles(w, ASSEMBLY: tl.constexpr):
    """Return 16 times the high nibbles of int8 bytes, four bytes an instruction."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "and.b32 $0, $1, 0xF0F0F0F0;", "=r,r", [w], dtype=tl.int8, is_pure=True, pack=4
        )
    return w & -16


@triton.jit
def _tiles(
    x, x_scale, weight, weight_scale, bias, scale_out, out, residual, M, N, K,
    X_TOKENS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HALF: tl.constexpr,
    DESCRIPTORS: tl.constexpr, ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile ``[BLOCK_N, BLOCK_M]`` of the transposed result, HALF (codes in half a group) columns at a time.

    The weight is the left operand, which tensor cores take from registers: its nibbles are spread there.
    """
    let_next_start(PDL)
    tile = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group_tiles = tile // (8 * tiles_n)
    group_m = min(tiles_m - group_tiles * 8, 8)
    begin_m = (group_tiles * 8 + tile % (8 * tiles_n) % group_m) * BLOCK_M
    begin_n = tile % (8 * tiles_n) // group_m * BLOCK_N
    rows = begin_m + tl.arange(0, BLOCK_M)
    columns = begin_n + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, HALF)
    if not DESCRIPTORS:
        x_at = x + (rows % M).to(tl.int64)[None, :] * K + depth[:, None]
        w_at = weight + (columns % N).to(tl.int64)[:, None] * (K // 2) + depth[None, :]
    scale_at = weight_scale + columns % N
    wait_for_previous(PDL)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    groups = K // (2 * HALF)
    # A group's sum is scaled while tensor cores work on the next group: neither its scale nor the sum is waited for.
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    scale = tl.zeros((BLOCK_N,), tl.float32)
    for group in tl.range(0, groups):
        if DESCRIPTORS:
            w = weight.load([begin_n, group * HALF])
            x_low = x.load([begin_m, group * 2 * HALF]).T
            x_high = x.load([begin_m, group * 2 * HALF + HALF]).T
        else:
            w = tl.load(w_at + group * HALF)
            x_low = tl.load(x_at + group * 2 * HALF)
            x_high = tl.load(x_at + group * 2 * HALF + HALF)
        next_sums = tl.dot(_low_nibbles(w, ASSEMBLY), x_low, out_dtype=tl.int32)
        next_sums = tl.dot(_high_nibbles(w, ASSEMBLY), x_high, next_sums, out_dtype=tl.int32)
        total += sums.to(tl.float32) * (scale * 0.0625)[:, None]
        sums = next_sums
        scale = tl.load(scale_at + group * N)
    total += sums.to(tl.float32) * (scale * 0.0625)[:, None]
    if X_TOKENS:
        y = total * tl.load(x_scale + rows, mask=rows < M, other=0.0)[None, :]
    else:
        y = total * tl.load(x_scale)
    inside = (rows < M)[None, :] & (columns < N)[:, None]
    finish(y, bias, scale_out, out, residual, rows[None, :], columns[:, None], inside, N, OUT_CHANNELS)


def _default_tile(m: int) -> Tile:
    """Return a tile for products that nobody measured."""
    if m <= MAX_NORM_TOKENS:
        return Tile(0, 32, stages=20)
    return Tile(min(max(triton.next_power_of_2(m), 16), 128), 64, stages=6 if m <= 64 else 4)


def linear_int4(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    *,
    out: Tensor | None = None,
    residual: Tensor | None = None,
    tile: Tile | None = None,
    chained: bool = True,
) -> None:
    """Write the linear layer of int8 activations and arranged int4 weights; all contiguous.

    Args:
        x: int8 ``[M, K]``.
        x_scale: float32 ``[1]`` or ``[M, 1]``.
        weight: uint8 ``[N, K / 2]`` of `arrange`.
        weight_scale: float32 ``[groups, N]`` of `arrange`; groups of 64, 128, 256, … codes.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]`` for an int8 ``out``; None for a float one.
        out: ``[M, N]`` int8, float32, float16 or bfloat16: written.
        residual: float ``[M, N]``: the result is added to it in float32, rounded once to its dtype. Instead of ``out``.
        tile: how to cut the product; the measured or the default choice if not given.
        chained: whether the launch may start, and read the weight, before the launch ahead has finished: not where that
            one writes the weight.
    """
    m, k = x.shape
    groups, n = weight_scale.shape
    expect_one_target(out, residual, scale_out)
    if m == 0 or n == 0:
        return
    tile = tile or tile_of("int4_linear", x.device, m, n, k, _default_tile(m))
    half = k // groups // 2
    if tile.block_m == 0:
        _launch_rows(
            x, None, 0.0, x_scale, weight, weight_scale, bias, scale_out, out, residual, None, tile, chained
        )
        return
    codes = weight.view(torch.int8)
    descriptors = has_descriptors(x)
    _tiles[(triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n),)](
        TensorDescriptor.from_tensor(x, [tile.block_m, half]) if descriptors else x, x_scale,
        TensorDescriptor.from_tensor(codes, [tile.block_n, half]) if descriptors else codes, weight_scale,
        bias, scale_out, out, residual, m, n, k,
        X_TOKENS=x_scale.numel() > 1, OUT_CHANNELS=scale_out is not None and scale_out.numel() > 1,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, HALF=half, DESCRIPTORS=descriptors,
        ASSEMBLY=not interpreted(_tiles), num_warps=tile.warps, num_stages=tile.stages, **launch_options(x, chained),
    )  # fmt: skip


def norm_linear_int4(
    hidden: Tensor,
    gain: Tensor,
    eps: float,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    *,
    out: Tensor,
    tile: Tile | None = None,
) -> None:
    """Write the linear layer of the quantised RMS norm of a few tokens, in one launch.

    Equal to ``linear_int4(rms_norm(hidden, gain, eps, x_scale), x_scale, …)`` up to the order in which squares
    are added.

    Args:
        hidden: float ``[M, K]``, M at most `MAX_NORM_TOKENS`, K at most 16384.
        gain: float32 ``[K]``.
        eps: added to the mean square.
        x_scale: float32 ``[1]``, the scale of the norm's codes.
        weight: as the rest, see `linear_int4`.
        weight_scale: float32 ``[groups, N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``.
        out: ``[M, N]``.
        tile: how to cut the product.

    Raises:
        InputError: more tokens than the kernel is for, or a K that it cannot take.
    """
    m, k = hidden.shape
    if not 0 < m <= MAX_NORM_TOKENS or k > _MAX_NORM_K:
        raise InputError(
            f"norm_linear_int4: takes 1 to {MAX_NORM_TOKENS} tokens and K up to {_MAX_NORM_K}; "
            f"got {m} tokens, K = {k}; run rms_norm and linear_int4 instead"
        )
    expect_one_target(out, None, scale_out)
    n = weight.shape[0]
    tile = tile or tile_of("norm_int4_linear", hidden.device, m, n, k, Tile(0, 32, stages=20))
    codes, _ = workspace(hidden.device)
    _launch_rows(hidden, gain, eps, x_scale, weight, weight_scale, bias, scale_out, out, None, codes, tile)


def _launch_rows(
    x: Tensor,
    gain: Tensor | None,
    eps: float,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    out: Tensor | None,
    residual: Tensor | None,
    codes: Tensor | None,
    tile: Tile,
    chained: bool = True,
) -> None:
    m, k = x.shape
    groups, n = weight_scale.shape
    slots = 1 if codes is None else codes.numel() // (m * k // 4)
    half = k // groups // 8
    _rows[(triton.cdiv(n, tile.block_n),)](
        x if gain is not None else x.view(torch.int32), gain, eps, x_scale, weight.view(torch.int32), weight_scale,
        bias, scale_out, out, residual, codes, n, k // 8, slots,
        M=m, X_TOKENS=x_scale.numel() > 1, OUT_CHANNELS=scale_out is not None and scale_out.numel() > 1,
        BLOCK_N=tile.block_n, HALF=half, GROUPS=groups, AHEAD=min(tile.stages, groups),
        NORM_WORDS=triton.next_power_of_2(k // 4), ASSEMBLY=not interpreted(_rows), num_warps=tile.warps,
        **launch_options(x, chained),
    )  # fmt: skip


def _supports(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> str | None:
    size = x.shape[-1] // weight_scale.shape[1]
    if size < 64 or size & (size - 1):
        return f"group size {size} is not 64, 128 or a larger power of two"
    return None


def _run(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    dtype = torch.float32 if scale_out is None else torch.int8
    out = torch.empty((rows.shape[0], packed.shape[0]), dtype=dtype, device=x.device)
    linear_int4(
        rows, x_scale.contiguous(), *arrange(packed, weight_scale), contiguous(bias), contiguous(scale_out),
        out=out, chained=False,
    )  # fmt: skip
    return out.view(*x.shape[:-1], packed.shape[0])


int4_linear.register(Kernel("triton", "cuda", _run, _supports))
