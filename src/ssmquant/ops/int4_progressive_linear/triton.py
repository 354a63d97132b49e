# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"
"""`int4_progressive_linear` on NVIDIA GPUs: `int8_linear`'s kernels over weights that are expanded as they are read.

The kernels read their own arrangement of the checkpoint's bytes (`arrange`): in blocks of eight granules of codes (a
granule is 16, 32 or 64 codes of one group), byte j of a block holds code j of its first half in the low nibble and code
j of its second half in the high one; the bytes of the block's eight grids are one int64. Four neighbouring codes are
expanded at once: with u = code + 8 and z = zero point + 8, ``(u - z) * m + 128`` lies within a byte, so that one
32-bit product and one sum do four of them without a carry between them.

Few tokens take `int8_linear`'s kernel for them, which here multiplies nibbles and then by multipliers. More tokens take
`_tiles`: the weight is the left factor, which tensor cores take from registers, where it is expanded; K is split as in
`int8_linear`. For prompts the whole weight is expanded once to int8 codes, and multiplied as such.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int4_progressive_linear import int4_progressive_linear
from ssmquant.ops.int8_linear.triton import (
    RowFormat,
    contiguous,
    expect_few_tokens,
    expect_one_target,
    has_descriptors,
    launch_rows,
    linear_int8,
    place_of_tile,
    processors,
    splits,
    store_tile,
    sum_of_splits,
    tile_of,
)
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import dot4, interpreted, launch_options, let_next_start, wait_for_previous
from ssmquant.ops.tuning import Tile

__all__ = [
    "arrange",
    "expand_into",
    "linear_int4_progressive",
    "norm_linear_int4_progressive",
    "scratch_bytes",
    "unsupported",
]

_FEW_TOKENS = 2  # most that go to the kernel for few of them, which repeats its work for each
_MAX_ROWS_K = 16384  # all of K of some rows fits into registers up to here
_SPAN = 128  # bytes of a row that a step of a tile takes at most
_MAX_TILE_TOKENS = 128  # above, the weight is expanded once for all tiles of tokens
_MAX_SCRATCH = 1 << 28  # bytes of an expanded weight; a larger one (a head) is expanded tile by tile


def _granule(k: int, groups: int) -> int:
    """Return how many codes a byte of the arranged grid stands for, 0 if there is no arrangement for these sizes."""
    size = k // groups
    return next((g for g in (64, 32, 16) if size % g == 0 and k % (8 * g) == 0), 0)


def unsupported(k: int, groups: int) -> str | None:
    """Return why the kernels cannot take rows of k codes in so many groups, None if they can."""
    if _granule(k, groups):
        return None
    return f"K = {k} in groups of {k // groups}: K must be divisible by 128, and the group size by 16"


def arrange(packed: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the checkpoint's bytes and grids as the kernels read them.

    Args:
        packed: uint8 ``[N, K / 2]``, see `packing`.
        grid: uint8 ``[N, groups]``, multipliers and zero points, see `join_grid`.

    Returns:
        uint8 ``[N, K / 2]`` and int64 ``[blocks, N]``, eight grids each.
    """
    n, groups = grid.shape
    k = 2 * packed.shape[1]
    granule = _granule(k, groups)
    nibbles = unpack_int4(packed).view(torch.uint8) & 0xF
    low, high = nibbles.view(n, -1, 2, 4 * granule).unbind(2)
    blocks = grid.repeat_interleave(k // groups // granule, dim=1).view(torch.int64)
    return (low | (high << 4)).view(n, -1), blocks.T.contiguous()


@triton.jit
def _load_packed(weight, grid, rows, N, words, WORDS: tl.constexpr, GRANULE: tl.constexpr):
    """Load rows of packed words ``[rows, blocks, GRANULE]`` and their blocks' grids ``[rows, blocks]``."""
    block = tl.arange(0, WORDS // (2 * GRANULE))
    word = tl.arange(0, GRANULE)
    inside = (rows < N)[:, None] & (block < words // (2 * GRANULE))[None, :]
    at = (
        weight
        + (rows.to(tl.int64) * (words // 2))[:, None, None]
        + block[None, :, None] * GRANULE
        + word[None, None, :]
    )
    packed = tl.load(at, mask=inside[:, :, None], other=0, eviction_policy="evict_first")
    grids = tl.load(grid + block[None, :] * N + rows[:, None], mask=inside, other=0)
    return packed, grids


@triton.jit
def _of_words(blocks, GRANULE: tl.constexpr):
    """Return the grid of each word, for the low and for the high nibbles, of what `_load_packed` has of the blocks."""
    shift = (tl.arange(0, GRANULE) // (GRANULE // 4) * 8)[None, None, :]
    low = (blocks.to(tl.int32)[:, :, None] >> shift) & 0xFF
    high = ((blocks >> 32).to(tl.int32)[:, :, None] >> shift) & 0xFF
    return low, high


@triton.jit
def _load_chunk(weight, grid, rows, N, words, chunk, CHUNK: tl.constexpr, GRANULE: tl.constexpr):
    """Load a chunk of rows of packed words ``[rows, CHUNK]``, and the grids of their blocks."""
    word = chunk * CHUNK + tl.arange(0, CHUNK)
    block = chunk * (CHUNK // GRANULE) + tl.arange(0, CHUNK // GRANULE)
    at = weight + (rows.to(tl.int64) * words)[:, None] + word[None, :]
    known = (rows < N)[:, None]
    packed = tl.load(at, mask=known & (word < words)[None, :], other=0, eviction_policy="evict_first")
    inside = known & (block * GRANULE < words)[None, :]
    grids = tl.load(grid + (block * N)[None, :] + rows[:, None], mask=inside, other=0)
    return packed, grids


@triton.jit
def _fours(x):
    """Return the sums of four neighbours each, ``[rows, CHUNK / 4]`` of ``[rows, CHUNK]``."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // 4, 4)), 2)


@triton.jit
def _hold_chunk(parts, CHUNK: tl.constexpr, GRANULE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the words of a token that meet the low and the high nibbles, and minus the sums of sixteen codes each."""
    ones = tl.full(parts[0].shape, -1, tl.int32)  # four codes of -1
    low, high = dot4(parts[0], ones, 0, ASSEMBLY), dot4(parts[1], ones, 0, ASSEMBLY)
    return parts[0], parts[1], _fours(low), _fours(high)


@triton.jit
def _add_chunk(total, loaded, token, CHUNK: tl.constexpr, GRANULE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Add the products of a chunk of rows with a token's: codes first, then four words' sums times their multiplier."""
    ROWS: tl.constexpr = loaded[0].shape[0]
    shift = (tl.arange(0, GRANULE // 4) * 4 // (GRANULE // 4) * 8)[None, None, :]
    grids = tl.broadcast_to(loaded[1][:, :, None], (ROWS, CHUNK // GRANULE, GRANULE // 4))
    first = tl.reshape(grids.to(tl.int32) >> shift, (ROWS, CHUNK // 4))
    second = tl.reshape((grids >> 32).to(tl.int32) >> shift, (ROWS, CHUNK // 4))
    # Low nibbles as code + 8, like zero points; high ones as 16 times the code.
    low = _fours(dot4((loaded[0] ^ 0x08080808) & 0x0F0F0F0F, token[0], 0, ASSEMBLY))
    high = _fours(dot4(loaded[0] & -252645136, token[1], 0, ASSEMBLY)) >> 4  # 0xF0F0F0F0
    total += (low + ((first >> 4) & 0xF) * token[2]) * (first & 0xF)
    return total + (high + (((second >> 4) & 0xF) - 8) * token[3]) * (second & 0xF)


_PACKED = RowFormat(_load_chunk, _hold_chunk, _add_chunk, 2, 4)


@triton.jit
def _expanded(nibbles, grid):
    """Return the four int8 codes in each int32 of four nibbles, a byte apart, and the byte of their grid."""
    step = grid & 0xF
    # Minus the zero point times the step, and 128, in each byte: the sums' bytes are in [1, 255], so none carries.
    moved = step * (grid >> 4) * -16843009 - 2139062144  # -0x01010101, 0x80808080
    return ((nibbles ^ 0x08080808) * step + moved) ^ -2139062144


@triton.jit
def _expand(
    weight, grid, out, N, words, BLOCK_N: tl.constexpr, WORDS: tl.constexpr, GRANULE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_N rows of ``words`` int32 of four int8 codes."""
    let_next_start(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    packed, blocks = _load_packed(weight, grid, rows, N, words, WORDS, GRANULE)
    low, high = _of_words(blocks, GRANULE)
    low = _expanded(packed & 0x0F0F0F0F, low)
    high = _expanded((packed >> 4) & 0x0F0F0F0F, high)
    block = tl.arange(0, WORDS // (2 * GRANULE))
    word = block[None, :, None] * (2 * GRANULE) + tl.arange(0, GRANULE)[None, None, :]
    at = out + rows.to(tl.int64)[:, None, None] * words + word
    inside = (rows < N)[:, None, None] & (word < words)
    wait_for_previous(PDL)  # a launch ahead may still read what was expanded before
    tl.store(at, low, mask=inside)
    tl.store(at + GRANULE, high, mask=inside)


_EXPAND = """
    and.b32 u, u, 0x0F0F0F0F;
    xor.b32 u, u, 0x08080808;
    and.b32 m, $2, 15;
    shr.u32 z, $2, 4;
    mul.lo.u32 z, z, m;
    mad.lo.u32 z, z, 0xFEFEFEFF, 0x80808080;
    mad.lo.u32 u, u, m, z;
    xor.b32 $0, u, 0x80808080;
}"""
_LOW: tl.constexpr = tl.constexpr("{ .reg .b32 u, m, z; mov.b32 u, $1;" + _EXPAND)
_HIGH: tl.constexpr = tl.constexpr("{ .reg .b32 u, m, z; shr.u32 u, $1, 4;" + _EXPAND)


@triton.jit
def _low_codes(w, grid, ASSEMBLY: tl.constexpr):
    """Return the int8 codes of the low nibbles of bytes, four at once as `_expanded` does; four have equal grids."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(_LOW, "=r,r,r,r,r,r", [w, grid], dtype=tl.int8, is_pure=True, pack=4)
    return (((w << 4) >> 4).to(tl.int32) - (grid >> 4) + 8).to(tl.int8) * (grid & 0xF).to(tl.int8)


@triton.jit
def _high_codes(w, grid, ASSEMBLY: tl.constexpr):
    """Return the int8 codes of the high nibbles of bytes, as `_low_codes`."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            _HIGH, "=r,r,r,r,r,r", [w, grid], dtype=tl.int8, is_pure=True, pack=4
        )
    return ((w >> 4).to(tl.int32) - (grid >> 4) + 8).to(tl.int8) * (grid & 0xF).to(tl.int8)


@triton.jit
def _tiles(
    x, x_scale, weight, grid, weight_scale, bias, scale_out, out, residual, sums, arrived, M, N, K,
    X_TOKENS: tl.constexpr, OUT_CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GRANULE: tl.constexpr, SPAN: tl.constexpr, SPLIT_K: tl.constexpr, DESCRIPTORS: tl.constexpr, ASSEMBLY: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One tile ``[BLOCK_N, BLOCK_M]`` of the transposed result, or a part of K of it, SPAN bytes of a row at a time."""
    let_next_start(PDL)
    HALF: tl.constexpr = 4 * GRANULE  # codes in half a block, bytes in a whole one
    SPANS: tl.constexpr = HALF // SPAN
    tile = tl.program_id(0)
    split = tl.program_id(1)
    begin_m, begin_n = place_of_tile(tile, M, N, BLOCK_M, BLOCK_N)
    rows = begin_m + tl.arange(0, BLOCK_M)
    columns = begin_n + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, SPAN)
    spans = K // (2 * SPAN)
    width = tl.cdiv(spans, SPLIT_K)
    first_span = split * width
    grid_at = grid + columns % N
    if not DESCRIPTORS:
        # Rows beyond the end are read from the start again and never stored.
        x_at = x + (rows % M).to(tl.int64)[None, :] * K + depth[:, None]
        w_at = weight + (columns % N).to(tl.int64)[:, None] * (K // 2) + depth[None, :]
    wait_for_previous(PDL)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for span in tl.range(first_span, min(first_span + width, spans)):
        block = span // SPANS
        within = span % SPANS * SPAN
        low = block * (2 * HALF) + within
        if DESCRIPTORS:
            w = weight.load([begin_n, span * SPAN])
            x_low = x.load([begin_m, low]).T
            x_high = x.load([begin_m, low + HALF]).T
        else:
            w = tl.load(w_at + span * SPAN)
            x_low = tl.load(x_at + low)
            x_high = tl.load(x_at + low + HALF)
        grids = tl.load(grid_at + block * N)
        shift = ((within + depth) // GRANULE * 8)[None, :]
        first = (grids.to(tl.int32)[:, None] >> shift) & 0xFF
        second = ((grids >> 32).to(tl.int32)[:, None] >> shift) & 0xFF
        total = tl.dot(_low_codes(w, first, ASSEMBLY), x_low, total, out_dtype=tl.int32)
        total = tl.dot(_high_codes(w, second, ASSEMBLY), x_high, total, out_dtype=tl.int32)
    total, last = sum_of_splits(total, sums, arrived, tile, split, BLOCK_N, BLOCK_M, SPLIT_K)
    if last:
        store_tile(
            total, x_scale, weight_scale, bias, scale_out, out, residual, rows[None, :], columns[:, None], M, N,
            X_TOKENS, True, OUT_CHANNELS,
        )  # fmt: skip


def _default_tile(m: int, n: int, k: int, blocks: int, processors: int) -> Tile:
    """Return a tile for products that nobody measured."""
    if m <= _FEW_TOKENS and k <= _MAX_ROWS_K:
        return Tile(0, 8)
    tile = Tile(32 if m <= 32 else 64, 64, stages=4 if m <= 32 else 3)
    tiles, split = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n), 1
    while tiles * split < 1.5 * processors and blocks >= 4 * split:
        split *= 2
    return replace(tile, split_k=split)


def scratch_bytes(m: int, n: int, k: int) -> int:
    """Return the bytes of the expanded weight that a product of m tokens uses; 0 where it expands tile by tile."""
    return n * k if m > _MAX_TILE_TOKENS and n * k <= _MAX_SCRATCH else 0


def expand_into(weight: Tensor, grid: Tensor, out: Tensor) -> None:
    """Write the int8 codes of an arranged weight to ``out [N, K]``."""
    n, k = out.shape
    words = k // 4
    _expand[(triton.cdiv(n, 8),)](
        weight.view(torch.int32), grid, out.view(torch.int32), n, words, BLOCK_N=8,
        WORDS=triton.next_power_of_2(words), GRANULE=words // len(grid) // 2, num_warps=8, **launch_options(out),
    )  # fmt: skip


def linear_int4_progressive(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    *,
    out: Tensor | None = None,
    residual: Tensor | None = None,
    tile: Tile | None = None,
    chained: bool = True,
) -> None:
    """Write the linear layer of int8 activations and arranged progressive int4 weights; all contiguous.

    It allocates `scratch_bytes` and does not synchronise.

    Args:
        x: int8 ``[M, K]``.
        x_scale: float32 ``[1]`` or ``[M, 1]``.
        weight: uint8 ``[N, K / 2]`` of `arrange`.
        grid: int64 ``[blocks, N]`` of `arrange`.
        weight_scale: float32 ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]`` for an int8 ``out``; None for a float one.
        out: ``[M, N]`` int8, float32, float16 or bfloat16: written.
        residual: float ``[M, N]``: the result is added to it in float32, rounded once to its dtype. Instead of ``out``.
        tile: how to cut the product; the measured or the default choice if not given.
        chained: whether the launch may start, and read the weight, before the launch ahead has finished: not where that
            one writes the weight.
    """
    m, k = x.shape
    n = len(weight)
    expect_one_target(out, residual, scale_out)
    if m == 0 or n == 0:
        return
    if tile is None and scratch_bytes(m, n, k):
        codes = torch.empty((n, k), dtype=torch.int8, device=x.device)
        expand_into(weight, grid, codes)
        linear_int8(
            x, x_scale, codes, weight_scale, bias, scale_out, out=out, residual=residual, chained=False
        )
        return
    tile = tile or tile_of(
        "int4_progressive_linear", x.device, m, n, k, _default_tile(m, n, k, len(grid), processors(x))
    )
    if tile.block_m == 0:
        launch_rows(
            x.view(torch.int32), None, 0.0, x_scale, _PACKED, weight.view(torch.int32), grid, weight_scale,
            bias, scale_out, out, residual, tile, chained,
        )  # fmt: skip
        return
    tiles, split, sums, arrived = splits(x.device, m, n, tile)
    half = k // len(grid) // 2
    span = min(half, _SPAN)
    stored = weight.view(torch.int8)
    descriptors = has_descriptors(x)
    _tiles[(tiles, split)](
        TensorDescriptor.from_tensor(x, [tile.block_m, span]) if descriptors else x, x_scale,
        TensorDescriptor.from_tensor(stored, [tile.block_n, span]) if descriptors else stored, grid,
        weight_scale, bias, scale_out, out, residual, sums, arrived, m, n, k,
        X_TOKENS=x_scale.numel() > 1, OUT_CHANNELS=scale_out is not None and scale_out.numel() > 1,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, GRANULE=half // 4, SPAN=span, SPLIT_K=split,
        DESCRIPTORS=descriptors, ASSEMBLY=not interpreted(_tiles), num_warps=tile.warps, num_stages=tile.stages,
        **launch_options(x, chained),
    )  # fmt: skip


def norm_linear_int4_progressive(
    hidden: Tensor,
    gain: Tensor,
    eps: float,
    x_scale: Tensor,
    weight: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    *,
    out: Tensor,
    tile: Tile | None = None,
) -> None:
    """Write the linear layer of the quantised RMS norm of a few tokens, in one launch; see `norm_linear_int8`.

    Args:
        hidden: float ``[M, K]``, M at most `MAX_NORM_TOKENS`.
        gain: float32 ``[K]``.
        eps: added to the mean square.
        x_scale: float32 ``[1]``, the scale of the norm's codes.
        weight: as the rest, see `linear_int4_progressive`.
        grid: int64 ``[blocks, N]``.
        weight_scale: float32 ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``.
        out: ``[M, N]``.
        tile: how to cut the product.

    Raises:
        InputError: more tokens than the kernel is for, or a K that it cannot take.
    """
    m, k = hidden.shape
    n = len(weight)
    expect_few_tokens(m, k, 128)
    expect_one_target(out, None, scale_out)
    tile = tile or tile_of("norm_int4_progressive_linear", hidden.device, m, n, k, Tile(0, 8, stages=4))
    launch_rows(
        hidden, gain, eps, x_scale, _PACKED, weight.view(torch.int32), grid, weight_scale, bias, scale_out, out, None,
        tile,
    )  # fmt: skip


def _supports(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> str | None:
    return unsupported(x.shape[-1], grid.shape[1])


def _run(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    dtype = torch.float32 if scale_out is None else torch.int8
    out = torch.empty((rows.shape[0], packed.shape[0]), dtype=dtype, device=x.device)
    linear_int4_progressive(
        rows, x_scale.contiguous(), *arrange(packed, grid), weight_scale.contiguous(), contiguous(bias),
        contiguous(scale_out), out=out, chained=False,
    )  # fmt: skip
    return out.view(*x.shape[:-1], packed.shape[0])


int4_progressive_linear.register(Kernel("triton", "cuda", _run, _supports))
