# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment, var-annotated"
# ruff: noqa: RUF005  (Triton does not compile unpacking into a tuple)
"""`float_linear` on NVIDIA GPUs: float32 activations times float16 weights or codes, which are spread in registers.

Few tokens are multiplied on float32 units, so that a step is as fast as the weight is read (`_rows`). More go to tensor
cores (`_tiles`): codes and float16 weights are exact there, and a token is the sum of two float16 terms (22 bits, after
scaling by a power of two), which `_terms` writes beforehand. Steps of groups are multiplied in float32, group by group.

Neither splits K between programs: the order of every sum follows from the shapes alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.float_linear import float_linear
from ssmquant.ops.hadamard.triton import power_of_two_above, split
from ssmquant.ops.int8_linear.triton import contiguous, finish, place_of_tile
from ssmquant.ops.registry import Kernel
from ssmquant.ops.ssd.triton import half
from ssmquant.ops.triton_numerics import launch_options, let_next_start, wait_for_previous

__all__: list[str] = []

_ASSEMBLY = tl.constexpr(not triton.knobs.runtime.interpret)
_FEW = 4  # tokens up to which each is multiplied with every weight apart


class _RowTile(NamedTuple):
    """How `_rows` goes through a weight: rows, warps, int32 of a row a thread, and how many times that is under way."""

    rows: int
    warps: int
    words: int
    steps: int


class _Tile(NamedTuple):
    """Sizes of a tile of `_tiles` (depth in stored columns), its warps, and how many blocks of K are under way."""

    tokens: int
    rows: int
    depth: int
    warps: int
    stages: int


# By codes in an int32, for one token and for more. Tensor cores are faster at two tokens of four bits.
_ROW_TILES = {
    2: (_RowTile(4, 2, 4, 2), _RowTile(4, 4, 2, 1)),
    4: (_RowTile(8, 4, 2, 1), _RowTile(8, 2, 2, 1)),
    8: (_RowTile(8, 2, 2, 1), None),
}
# By the most tokens that they are for, of floats or bytes and of nibbles. Two warps where tiles are narrow, for the
# reason given at `_MANY_IN_PARTS` of the Hadamard transform.
_TILES = {
    16: (_Tile(16, 32, 256, 2, 3), _Tile(16, 32, 64, 2, 4)),
    128: (_Tile(64, 64, 64, 4, 4), _Tile(64, 64, 64, 4, 3)),
    2**62: (_Tile(128, 64, 64, 4, 3), _Tile(128, 64, 32, 4, 3)),
}


@triton.jit
def _steps(scale, zero_point, grid, rows, groups, group, inside):
    """Return step and zero point of some groups of int4 codes, float32; with a grid in units of the row's scale.

    Rows, group and inside broadcast.
    """
    at = rows.to(tl.int64) * groups + group
    if grid is not None:
        byte = tl.load(grid + at, mask=inside, other=0).to(tl.int32)
        step = (byte & 15).to(tl.float32)
        zero = ((byte >> 4) - 8).to(tl.float32)
    else:
        step = tl.load(scale + at, mask=inside, other=0.0)
        if zero_point is not None:
            zero = tl.load(zero_point + at, mask=inside, other=0).to(tl.float32)
        else:
            zero = tl.zeros(step.shape, tl.float32)
    return step, zero


@triton.jit
def _pieces(x, GROUPS: tl.constexpr, WORDS: tl.constexpr, CODES: tl.constexpr):
    """Return ``x[:, :, i]`` for each i, ``[GROUPS, WORDS]``, of a tile ``[GROUPS, WORDS, CODES]``."""
    if CODES == 2:
        pieces = tl.split(x)
    else:
        even, odd = tl.split(tl.reshape(x, (GROUPS, WORDS, CODES // 2, 2)))
        if CODES == 4:
            a, c = tl.split(even)
            b, d = tl.split(odd)
            pieces = (a, b, c, d)
        else:
            ae, cg = tl.split(tl.reshape(even, (GROUPS, WORDS, 2, 2)))
            bf, dh = tl.split(tl.reshape(odd, (GROUPS, WORDS, 2, 2)))
            a, e = tl.split(ae)
            c, g = tl.split(cg)
            b, f = tl.split(bf)
            d, h = tl.split(dh)
            pieces = (a, b, c, d, e, f, g, h)
    return pieces


@triton.jit
def _number(word, zero, INDEX: tl.constexpr, CODES: tl.constexpr):
    """Return the weight at a place of int32 words, float32, and the power of two that it is too large by.

    Codes come with their sign bits flipped, so that they are not negative. In the mantissa of 2**23 they are a float32,
    since the conversion instruction is slow; most need not even be shifted for that. ``zero`` is subtracted.
    """
    bits: tl.constexpr = 32 // CODES
    place: tl.constexpr = INDEX % (23 // bits)
    size: tl.constexpr = 2.0 ** (bits * place)
    if CODES == 2:
        number = (word >> (bits * INDEX)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        mask: tl.constexpr = ((1 << bits) - 1) << (bits * place)
        mantissa = word >> (bits * (INDEX - place))
        if _ASSEMBLY:  # one instruction, which the compiler makes two
            mantissa = tl.inline_asm_elementwise(
                "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [mantissa, mask, 0x4B000000], dtype=tl.int32,
                is_pure=True, pack=1,
            )  # fmt: skip
        else:
            mantissa = (mantissa & mask) | 0x4B000000
        number = mantissa.to(tl.float32, bitcast=True) - (zero * size + 8388608.0)
    return number, size


@triton.jit
def _rows(
    x, weight, scale, zero_point, grid, bias, scale_out, out, N, words, groups,
    M: tl.constexpr, CODES: tl.constexpr, GROUPED: tl.constexpr, ROW_SCALES: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, STEPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """M tokens times BLOCK_N rows of the weight, GROUPS times WORDS int32 of a row at once, STEPS of them under way.

    Tiles are ``[GROUPS, BLOCK_N, WORDS]``: Triton spreads threads over the words, then the first dimension, and so a
    thread has some words of several rows, and reads what they are multiplied with once.
    """
    CHUNK: tl.constexpr = GROUPS * WORDS
    wait_for_previous(PDL)
    let_next_start(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = (rows < N)[None, :, None]
    group = tl.arange(0, GROUPS)
    word = group[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    code = tl.arange(0, CODES)[None, None, :]
    w_at = weight + rows.to(tl.int64)[None, :, None] * words + word[:, None, :]
    totals = ()
    for _ in tl.static_range(M):
        totals = totals + (tl.zeros((GROUPS, BLOCK_N, WORDS), tl.float32),)
    for first in range(0, words, STEPS * CHUNK):
        loaded = ()
        for step in tl.static_range(STEPS):
            here = first + step * CHUNK
            inside = in_n & (word + here < words)[:, None, :]
            loaded = loaded + (tl.load(w_at + here, mask=inside, other=0, eviction_policy="evict_first"),)
        for step in tl.static_range(STEPS):
            here = first + step * CHUNK
            w = loaded[step]
            zero = 0.0
            if CODES == 4:
                w = w ^ -2139062144  # 0x80808080
                zero = 128.0
            if CODES == 8:
                w = w ^ -2004318072  # 0x88888888
                zero = 8.0
            if GROUPED:
                of_group = (here // WORDS + group)[:, None]
                size, offset = _steps(
                    scale, zero_point, grid, rows[None, :], groups, of_group,
                    (rows < N)[None, :] & (of_group < groups),
                )  # fmt: skip
                zero = zero + offset[:, :, None]
            sums = ()
            for m in tl.static_range(M):
                x_at = x + m * words * CODES + (word + here)[:, :, None] * CODES + code
                token = _pieces(
                    tl.load(x_at, mask=(word + here < words)[:, :, None], other=0.0), GROUPS, WORDS, CODES
                )
                part = tl.zeros((GROUPS, BLOCK_N, WORDS), tl.float32) if GROUPED else totals[m]
                for i in tl.static_range(CODES):
                    number, excess = _number(w, zero, i, CODES)
                    factor = tl.broadcast_to((token[i] * (1.0 / excess))[:, None, :], part.shape)
                    part = tl.fma(number, factor, part)
                if GROUPED:
                    part = tl.fma(part, tl.broadcast_to(size[:, :, None], part.shape), totals[m])
                sums = sums + (part,)
            totals = sums
    for m in tl.static_range(M):
        y = tl.sum(tl.sum(totals[m], 2), 0)
        if CODES == 4 or grid is not None:
            y = y * tl.load(scale + rows * ROW_SCALES, mask=rows < N, other=0.0)
        finish(y, bias, scale_out, out, None, rows * 0 + m, rows, rows < N, N, OUT_CHANNELS)


@triton.jit
def _terms(x, terms, unit, K, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Write a token as two float16 terms ``[M, 2, PARTS, K / PARTS]`` and the power of two that they are in units of.

    With two parts the first holds the even columns, which meet the low nibbles of a weight's bytes.
    """
    wait_for_previous(PDL)
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    largest = 0.0
    for first in range(0, K, BLOCK):
        v = tl.load(x + row * K + first + column, mask=first + column < K, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(v)))
    size, inverse = power_of_two_above(largest)
    # Below 2**13, with room for what is above the largest power of two that has a reciprocal.
    tl.store(unit + row, size * 2.0**-13)
    columns = K // PARTS
    for first in range(0, K, BLOCK):
        v = tl.load(x + row * K + first + column, mask=first + column < K, other=0.0)
        high, low = split(v * inverse * 8192.0)
        if PARTS == 1:
            at = terms + row * (2 * K) + first + column
            tl.store(at, high, mask=first + column < K)
            tl.store(at + K, low, mask=first + column < K)
        else:
            pair = first // 2 + tl.arange(0, BLOCK // 2)
            high_even, high_odd = tl.split(tl.reshape(high, (BLOCK // 2, 2)))
            low_even, low_odd = tl.split(tl.reshape(low, (BLOCK // 2, 2)))
            at = terms + row * (2 * K) + pair
            tl.store(at, high_even, mask=pair < columns)
            tl.store(at + columns, high_odd, mask=pair < columns)
            tl.store(at + K, low_even, mask=pair < columns)
            tl.store(at + K + columns, low_odd, mask=pair < columns)


@triton.jit
def _sixteenfold(byte, PART: tl.constexpr):
    """Return 16 times the low nibbles (part 0) or the high ones of int8 bytes, int8."""
    if _ASSEMBLY:
        if PART == 0:
            result = tl.inline_asm_elementwise(
                "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }", "=r,r", [byte], dtype=tl.int8,
                is_pure=True, pack=4,
            )  # fmt: skip
        else:
            result = tl.inline_asm_elementwise(
                "and.b32 $0, $1, 0xF0F0F0F0;", "=r,r", [byte], dtype=tl.int8, is_pure=True, pack=4
            )
    elif PART == 0:
        result = byte << 4
    else:
        result = byte & -16
    return result


@triton.jit
def _tiles(
    terms, unit, weight, scale, zero_point, grid, bias, scale_out, out, M, N, columns, groups,
    PARTS: tl.constexpr, ROW_SCALES: tl.constexpr, OUT_CHANNELS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_GROUPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile ``[BLOCK_N, BLOCK_M]`` of the transposed result: the left operand may come from registers.

    A stored row is ``columns`` float16, codes or bytes, in ``groups``. With a grid a block of K may hold several,
    BLOCK_GROUPS, since their steps are integers; otherwise it lies in one. ``WHOLE``: blocks divide groups or rows.
    """
    wait_for_previous(PDL)
    let_next_start(PDL)
    begin_m, begin_n = place_of_tile(tl.program_id(0), M, N, BLOCK_M, BLOCK_N)
    tokens = begin_m + tl.arange(0, BLOCK_M)
    rows = begin_n + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    x_at = terms + (tokens % M).to(tl.int64)[None, :] * (2 * PARTS * columns) + depth[:, None]
    group_of_block = tl.arange(0, BLOCK_GROUPS)
    place = (
        group_of_block[:, None] * (BLOCK_K // BLOCK_GROUPS) + tl.arange(0, BLOCK_K // BLOCK_GROUPS)[None, :]
    )
    w_at = weight + (rows % N).to(tl.int64)[:, None, None] * columns + place[None, :, :]
    every = tl.full((BLOCK_N, BLOCK_GROUPS), True, tl.int1)
    size = columns // groups
    blocks = tl.cdiv(size, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in tl.range(0, columns // BLOCK_K if WHOLE else groups * blocks):
        if WHOLE:
            here = block * BLOCK_K
            group = here // size
            w = tl.load(w_at + here)
        else:
            group = block // blocks
            start = block % blocks * BLOCK_K
            here = group * size + start
            w = tl.load(w_at + here, mask=(start + place < size)[None, :, :], other=0)
        if PARTS == 2:
            step, zero = _steps(
                scale, zero_point, grid, (rows % N)[:, None], groups, group + group_of_block[None, :], every
            )
        # Tensor cores add up a block and float32 units the blocks: tensor cores cut off where those round.
        sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for part in tl.static_range(PARTS):
            at = x_at + part * columns + here
            if WHOLE:
                high = tl.load(at)
                low = tl.load(at + PARTS * columns)
            else:
                inside = (start + depth < size)[:, None]
                high = tl.load(at, mask=inside, other=0.0)
                low = tl.load(at + PARTS * columns, mask=inside, other=0.0)
            if PARTS == 2:
                operand = half(_sixteenfold(w, part))
                if zero_point is not None or grid is not None:
                    operand = operand - (zero * 16.0).to(tl.float16)[:, :, None]
                if grid is not None:
                    operand = operand * step.to(tl.float16)[:, :, None]
            elif scale is not None:
                operand = half(w)
            else:
                operand = w
            operand = tl.reshape(operand, (BLOCK_N, BLOCK_K))
            sums = tl.dot(operand, low, sums)
            sums = tl.dot(operand, high, sums)
        if PARTS == 2 and grid is None:
            total = tl.fma(sums, tl.broadcast_to((tl.sum(step, 1) * 0.0625)[:, None], sums.shape), total)
        else:
            total += sums
    if PARTS == 1 and scale is not None:
        total = total * tl.load(scale + rows * ROW_SCALES, mask=rows < N, other=0.0)[:, None]
    if grid is not None:
        total = total * (tl.load(scale + rows, mask=rows < N, other=0.0) * 0.0625)[:, None]
    y = total * tl.load(unit + tokens, mask=tokens < M, other=0.0)[None, :]
    inside = (tokens < M)[None, :] & (rows < N)[:, None]
    finish(y, bias, scale_out, out, None, tokens[None, :], rows[:, None], inside, N, OUT_CHANNELS)


def _words_at_once(columns: int, groups: int, codes: int, chunk: int) -> tuple[int, int] | None:
    """Return how many groups, and how many int32 of each, `_rows` takes at once; None where groups do not fit.

    Args:
        columns: K.
        groups: of int4 codes; 0 for other weights, which are taken ``chunk`` words at once.
        codes: in an int32.
        chunk: words that all threads load at once.
    """
    if columns % codes:
        return None
    if not groups:
        return 1, chunk
    size = columns // groups
    words = size // codes
    if size % codes or words & (words - 1) or words > chunk:
        return None
    return chunk // words, words


def _block(columns: int, groups: int, depth: int, integer_steps: bool) -> tuple[int, int, bool]:
    """Return the columns of a block of `_tiles`, how many groups they are, and whether blocks divide groups or rows.

    Args:
        columns: of a stored row.
        groups: that they are in.
        depth: columns of a block where nothing is against it.
        integer_steps: whether a block may hold several groups.
    """
    size = columns // groups
    if integer_steps and depth % size == 0 and columns % depth == 0:
        return depth, depth // size, True
    depth = min(depth, max(16, triton.next_power_of_2(size)))  # a product's sides are 16 and more
    return depth, 1, size % depth == 0


def _run(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    grid: Tensor | None,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    m, k = tokens.shape
    n = weight.shape[0]
    dtype = torch.float32 if scale_out is None else torch.int8
    out = torch.empty((*x.shape[:-1], n), dtype=dtype, device=x.device)
    if not out.numel():
        return out
    weight, scale, grid = weight.contiguous(), contiguous(scale), contiguous(grid)
    zero_point, bias, scale_out = contiguous(zero_point), contiguous(bias), contiguous(scale_out)
    parts = 2 if weight.dtype == torch.uint8 else 1
    of_groups = (grid if grid is not None else scale) if parts == 2 else None
    groups = 0 if of_groups is None else of_groups.shape[1]
    row_scales = int(scale is not None and scale.numel() > 1)
    out_channels = scale_out is not None and scale_out.numel() > 1
    codes = parts * 4 // weight.element_size()
    row_tile = _ROW_TILES[codes][m > 1] if m <= _FEW else None
    shape = row_tile and _words_at_once(k, groups, codes, 32 * row_tile.warps * row_tile.words)
    if row_tile and shape and weight.storage_offset() * weight.element_size() % 4 == 0:
        _rows[(triton.cdiv(n, row_tile.rows),)](
            tokens, weight.view(torch.int32), scale, zero_point, grid, bias, scale_out, out, n, k // codes, groups,
            m, codes, bool(groups), row_scales, out_channels, row_tile.rows, *shape, row_tile.steps,
            num_warps=row_tile.warps, **launch_options(x),
        )  # fmt: skip
        return out
    terms = torch.empty((m, 2, parts, k // parts), dtype=torch.float16, device=x.device)
    unit = torch.empty(m, dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(k), 4096)
    _terms[(m,)](tokens, terms, unit, k, parts, max(block, 2), num_warps=4, **launch_options(x))
    tile = next(tiles for most, tiles in _TILES.items() if m <= most)[parts - 1]
    depth, block_groups, whole = _block(k // parts, max(groups, 1), tile.depth, grid is not None)
    _tiles[(triton.cdiv(m, tile.tokens) * triton.cdiv(n, tile.rows),)](
        terms, unit, weight.view(torch.int8) if parts == 2 else weight, scale, zero_point, grid, bias, scale_out, out,
        m, n, k // parts, max(groups, 1), parts, row_scales, out_channels, whole,
        tile.tokens, tile.rows, depth, block_groups, num_warps=tile.warps, num_stages=tile.stages, **launch_options(x),
    )  # fmt: skip
    return out


def _supports(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    grid: Tensor | None,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> str | None:
    if x.dtype != torch.float32:
        return f"multiplies float32 activations, not {x.dtype}"
    if weight.dtype in (torch.float32, torch.float64, torch.bfloat16):
        return f"multiplies float16 weights and codes; {weight.dtype} is left to PyTorch's own product"
    of_groups = grid if grid is not None else scale
    if weight.dtype == torch.uint8 and of_groups is not None and weight.shape[1] % of_groups.shape[1]:
        return f"an odd group size, {2 * weight.shape[1] // of_groups.shape[1]}: bytes would belong to two groups"
    return None


float_linear.register(Kernel("triton", "cuda", _run, _supports))
