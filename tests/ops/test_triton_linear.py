"""The Triton kernels of the linear layers, quantisation and the embedding, in Triton's interpreter, bit for bit.

Outputs lie in the middle of guarded memory, so that writes beside them show.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import InputError
from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.ops.int4_linear.reference import int4_linear
from ssmquant.ops.int4_progressive_linear.reference import (
    expand,
    int4_progressive_linear,
    join_grid,
    largest_multiplier,
)
from ssmquant.ops.int8_embedding.reference import int8_embedding
from ssmquant.ops.int8_linear.reference import int8_linear
from ssmquant.ops.quantize import reference as quantize
from ssmquant.ops.rms_norm.reference import rms_norm
from ssmquant.ops.tuning import Tile, bucket, find, key, record, table_file
from ssmquant.tolerance import assert_equal_codes, assert_half, float32_limit

from .cases import SUITES, Case, Draw
from .interpreter import needs_interpreter

pytest.importorskip("triton", reason="needs triton")

import triton
import triton.language as tl

from ssmquant.ops import linear_tuning, triton_numerics
from ssmquant.ops.float_linear import triton as float_products  # noqa: F401  (registers its kernel)
from ssmquant.ops.int4_linear import triton as int4
from ssmquant.ops.int4_progressive_linear import triton as progressive
from ssmquant.ops.int8_embedding import triton as embedding
from ssmquant.ops.int8_linear import triton as int8
from ssmquant.ops.quantize import triton as quantizing

pytestmark = needs_interpreter

REFERENCES: dict[str, Callable[..., Any]] = {
    "int8_linear": int8_linear,
    "int4_linear": int4_linear,
    "int4_progressive_linear": int4_progressive_linear,
    "quantize_static": quantize.quantize_static,
    "quantize_per_token": quantize.quantize_per_token,
    "int8_embedding": int8_embedding,
}
EVERY = [
    pytest.param(name, case, id=f"{name}: {case.name}") for name in REFERENCES for case in SUITES[name].cases
]
GUARD = 64  # elements on either side of an output


class Guarded:
    """An output of NaN (113 in integers) amid memory that nobody may write."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32, fill: Tensor | None = None) -> None:
        size = int(torch.Size(shape).numel())
        self.whole = torch.full(
            (size + 2 * GUARD,), float("nan") if dtype.is_floating_point else 113, dtype=dtype
        )
        self.tensor = self.whole[GUARD : GUARD + size].view(shape)
        if fill is not None:
            self.tensor.copy_(fill)

    def read(self) -> Tensor:
        """Return the output once its surroundings are seen to be as they were."""
        for guard in (self.whole[:GUARD], self.whole[-GUARD:]):
            assert bool(guard.isnan().all() if guard.is_floating_point() else (guard == 113).all())
        return self.tensor


def assert_same(got: Any, want: Any) -> None:
    for a, b in zip(*((r,) if isinstance(r, Tensor) else r for r in (got, want)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a, b)


def assert_stored(got: Tensor, want: Tensor) -> None:
    """Compare results that were rounded to a dtype; the interpreter cuts bfloat16 off where GPUs round to nearest."""
    if got.dtype == torch.bfloat16:
        assert_half(got, want)
    else:
        assert_same(got, want.to(got.dtype))


def kernel(name: str) -> Any:
    (found,) = (k for k in SUITES[name].op.kernels if k.backend == "triton")
    return found


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_kernels_equal_the_references(name: str, case: Case) -> None:
    args = case.args()
    reason = kernel(name).supports(*args)
    if reason is not None:
        assert "int4" in name and "group size" in reason  # the only reason that any of them has
        return
    assert_same(kernel(name).run(*args), REFERENCES[name](*args))


@pytest.mark.parametrize(("n", "k", "group_size"), [(9, 1536, 128), (5, 512, 64), (6, 768, 32), (7, 384, 16)])
def test_progressive_weights_in_granules_of_every_size(n: int, k: int, group_size: int) -> None:
    """Few tokens in blocks of rows one after the other, tiles whose blocks take several steps, and the expansion."""
    draw, groups = Draw(k), k // group_size
    zero_point = draw.ids(n, groups, below=16).to(torch.int8) - 8
    multiplier = (draw.uniform(n, groups, low=0.0, high=1.0) * largest_multiplier(zero_point)).to(torch.uint8)
    packed = pack_int4((draw.ids(n, k, below=16) - 8).to(torch.int8))
    grid = join_grid(multiplier.clamp(min=1), zero_point)
    weight_scale, x_scale = draw.scale(n), draw.scale(1)
    weight, blocks = progressive.arrange(packed, grid)
    codes = torch.empty(n, k, dtype=torch.int8)
    progressive.expand_into(weight, blocks, codes)
    assert_same(codes, expand(packed, grid))
    for m, tile in (
        (1, Tile(0, 8, warps=4, stages=2)),
        (2, Tile(0, 4, warps=1)),
        (3, Tile(32, 32, split_k=2)),
    ):
        x, got = draw.codes(m, k), Guarded(m, n)
        progressive.linear_int4_progressive(
            x, x_scale, weight, blocks, weight_scale, None, None, out=got.tensor, tile=tile
        )
        assert_same(got.read(), int4_progressive_linear(x, x_scale, packed, grid, weight_scale, None, None))


# float_linear, whose sums are floats


def transposed(tensor: Any) -> Any:
    """Return a tensor laid out with its dimensions in reverse; anything else as it is."""
    if not isinstance(tensor, Tensor):
        return tensor
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SUITES["float_linear"].cases])
def test_products_of_floats(case: Case) -> None:
    """Results, codes of them, and the same bits however arguments lie in memory."""
    args, found = case.args(), kernel("float_linear")
    reason = found.supports(*args)
    if reason is not None:
        assert args[1].dtype in (torch.float32, torch.bfloat16) or "odd group size" in reason
        return
    floats = found.run(*args[:-1], None)
    SUITES["float_linear"].compare((*args[:-1], None), floats)
    assert_same(found.run(*map(transposed, args[:-1]), None), floats)
    for scale in (torch.tensor([0.037]), torch.linspace(0.01, 0.1, floats.shape[-1])):
        assert_same(found.run(*args[:-1], scale), numerics.quantize(floats, scale))


@pytest.mark.parametrize(
    ("form", "groups"),
    [("float16", 0), ("int8", 0), *itertools.product(("int4", "zero points", "grid"), (1, 2, 3, 6, 12, 48))],
)
@pytest.mark.parametrize("m", [1, 3, 17, 130])
def test_float_products_in_every_tile(m: int, form: str, groups: int) -> None:
    """Groups of 16 to 768, some of which only tiles take."""
    n, k, draw = 37, 768, Draw(m + groups)
    x, scale, grid, zero_point = draw.normal(m, k), None, None, None
    weight = draw.normal(n, k).half() if form == "float16" else draw.codes(n, k)
    if form == "int8":
        scale = draw.scale(n)
    if groups:
        weight = draw.ids(n, k // 2, below=256).to(torch.uint8)
        scale = draw.scale(n) if form == "grid" else draw.scale(n, groups)
        zeros = (draw.ids(n, groups, below=16) - 8).to(torch.int8)
        if form == "zero points":
            zero_point = zeros
        if form == "grid":
            multiplier = (1 + draw.ids(n, groups, below=15)).minimum(largest_multiplier(zeros))
            grid = join_grid(multiplier.to(torch.uint8), zeros)
    args = (x, weight, scale, zero_point, grid, draw.normal(n), None)
    assert kernel("float_linear").supports(*args) is None
    SUITES["float_linear"].compare(args, kernel("float_linear").run(*args))


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_kernels_do_not_care_how_arguments_lie_in_memory(name: str, case: Case) -> None:
    args = tuple(
        a.permute(*reversed(range(a.dim()))).contiguous().permute(*reversed(range(a.dim())))
        if isinstance(a, Tensor)
        else a
        for a in case.args()
    )
    if kernel(name).supports(*args) is None:
        assert_same(kernel(name).run(*args), REFERENCES[name](*args))


# int8


def int8_args(
    draw: Draw, m: int, n: int, k: int, *, tokens: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_scale = draw.scale(m, 1) if tokens else draw.scale(1)
    return draw.codes(m, k), x_scale, draw.codes(n, k), draw.scale(n, absmax=1.0)


INT8_TILES = [
    (1, 9, 64, Tile(0, 4)),
    (3, 9, 80, Tile(0, 2, stages=3)),
    (4, 17, 48, Tile(0, 8, stages=2)),
    (1, 5, 16, Tile(0, 4)),
    (2, 5, 33, Tile(0, 4)),  # not aligned: goes to the other kernel
    (5, 40, 96, Tile(16, 32, 32, split_k=2)),
    (5, 40, 96, Tile(16, 32, 64, split_k=3)),  # the last part has nothing to do
    (17, 33, 161, Tile(16, 32, 64, split_k=2)),
    (37, 70, 33, Tile(16, 16, 32)),
    (1, 1, 1, Tile(16, 16, 32)),
    (150, 20, 32, Tile(16, 16, 32)),  # more tiles along M than a group has
]


@pytest.mark.parametrize(("m", "n", "k", "tile"), INT8_TILES)
def test_int8_tiles(m: int, n: int, k: int, tile: Tile) -> None:
    draw = Draw(m + n + k)
    args = int8_args(draw, m, n, k, tokens=m % 2 == 1)
    bias, scale_out = draw.normal(n), draw.scale(n, absmax=4.0 * k**0.5)
    for after in ((None, None), (bias, None), (bias, scale_out), (None, scale_out[:1])):
        out = Guarded(m, n, dtype=torch.float32 if after[1] is None else torch.int8)
        int8.linear_int8(*args, *after, out=out.tensor, tile=tile)
        assert_same(out.read(), int8_linear(*args, *after))


def test_a_split_tile_leaves_the_counters_as_it_found_them() -> None:
    args = int8_args(Draw(0), 5, 40, 96)
    for _ in range(3):
        out = Guarded(5, 40)
        int8.linear_int8(*args, None, None, out=out.tensor, tile=Tile(16, 32, 32, split_k=3))
        assert_same(out.read(), int8_linear(*args, None, None))
    assert not int8.workspace(torch.device("cpu"))[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [Tile(0, 4), Tile(16, 16, 32), Tile(16, 16, 32, split_k=2)])
def test_results_are_added_to_a_residual(dtype: torch.dtype, tile: Tile) -> None:
    draw = Draw(1)
    args = int8_args(draw, 3, 20, 64)
    before = draw.normal(3, 20).to(dtype)
    residual = Guarded(3, 20, dtype=dtype, fill=before)
    int8.linear_int8(*args, None, None, residual=residual.tensor, tile=tile)
    assert_stored(residual.read(), int8_linear(*args, None, None) + before.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_out(dtype: torch.dtype) -> None:
    args = int8_args(Draw(2), 3, 20, 64)
    out = Guarded(3, 20, dtype=dtype)
    int8.linear_int8(*args, None, None, out=out.tensor)
    assert_stored(out.read(), int8_linear(*args, None, None))


@pytest.mark.parametrize("m", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_norm_before_an_int8_linear_layer(m: int, dtype: torch.dtype) -> None:
    draw = Draw(m)
    hidden, gain = draw.normal(m, 80).to(dtype), draw.uniform(80, low=0.5, high=1.5)
    _, x_scale, *weight = int8_args(draw, m, 21, 80)
    out = Guarded(m, 21)
    int8.norm_linear_int8(hidden, gain, 1e-5, x_scale, *weight, None, None, out=out.tensor)
    codes = rms_norm(hidden, gain, 1e-5, x_scale)
    assert_same(out.read(), int8_linear(codes, x_scale, *weight, None, None))


def test_what_a_norm_kernel_cannot_take_is_refused() -> None:
    draw = Draw(3)
    _, x_scale, *weight = int8_args(draw, 5, 8, 80)
    with pytest.raises(InputError, match="takes 1 to 4 tokens"):
        int8.norm_linear_int8(
            draw.normal(5, 80), draw.normal(80), 1e-5, x_scale, *weight, None, None, out=torch.empty(5, 8)
        )


def test_a_result_has_one_place() -> None:
    args = int8_args(Draw(4), 2, 8, 16)
    out, residual = torch.empty(2, 8), torch.zeros(2, 8)
    with pytest.raises(InputError, match="give one of them"):
        int8.linear_int8(*args, None, None, out=out, residual=residual)
    with pytest.raises(InputError, match="give one of them"):
        int8.linear_int8(*args, None, None)
    with pytest.raises(InputError, match=r"out is torch\.float32"):
        int8.linear_int8(*args, None, torch.ones(1), out=out)


# int4


def int4_args(draw: Draw, m: int, n: int, k: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packed = draw.ids(n, k // 2, below=256).to(torch.uint8)
    return draw.codes(m, k), draw.scale(m, 1), packed, draw.scale(n, k // size, absmax=1.0)


INT4_TILES = [
    (1, 9, 256, 128, Tile(0, 8)),
    (3, 9, 256, 64, Tile(0, 4, stages=3)),
    (4, 21, 384, 128, Tile(0, 8, stages=9)),  # more groups ahead than there are
    (5, 40, 192, 64, Tile(16, 32)),
    (37, 40, 256, 128, Tile(16, 16)),
    (150, 16, 64, 64, Tile(16, 16)),  # more tiles along M than run side by side
    (1, 1, 64, 64, Tile(16, 16)),
]


@pytest.mark.parametrize(("m", "n", "k", "size", "tile"), INT4_TILES)
def test_int4_tiles(m: int, n: int, k: int, size: int, tile: Tile) -> None:
    draw = Draw(m + n + k)
    x, x_scale, packed, scale = int4_args(draw, m, n, k, size)
    bias, scale_out = draw.normal(n), draw.scale(n, absmax=0.5 * k**0.5)
    for after in ((None, None), (bias, scale_out), (None, scale_out[:1])):
        out = Guarded(m, n, dtype=torch.float32 if after[1] is None else torch.int8)
        int4.linear_int4(x, x_scale, *int4.arrange(packed, scale), *after, out=out.tensor, tile=tile)
        assert_same(out.read(), int4_linear(x, x_scale, packed, scale, *after))


def test_int4_results_are_added_to_a_residual() -> None:
    draw = Draw(5)
    x, x_scale, packed, scale = int4_args(draw, 3, 20, 128, 64)
    before = draw.normal(3, 20).half()
    residual = Guarded(3, 20, dtype=torch.float16, fill=before)
    int4.linear_int4(x, x_scale, *int4.arrange(packed, scale), None, None, residual=residual.tensor)
    assert_same(residual.read(), (int4_linear(x, x_scale, packed, scale, None, None) + before.float()).half())


@pytest.mark.parametrize("m", [1, 3])
def test_norm_before_an_int4_linear_layer(m: int) -> None:
    draw = Draw(m)
    hidden, gain, x_scale = draw.normal(m, 192), draw.uniform(192, low=0.5, high=1.5), draw.scale(1)
    _, _, packed, scale = int4_args(draw, m, 21, 192, 64)
    out = Guarded(m, 21)
    int4.norm_linear_int4(
        hidden,
        gain,
        1e-5,
        x_scale,
        *int4.arrange(packed, scale),
        None,
        None,
        out=out.tensor,
        tile=Tile(0, 8, stages=2),
    )
    codes = rms_norm(hidden, gain, 1e-5, x_scale)
    assert_same(out.read(), int4_linear(codes, x_scale, packed, scale, None, None))


def test_arrangement_pairs_the_halves_of_a_group() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(4).view(1, 64)
    nibbles = (codes & 0xF).view(torch.uint8)
    weight, scale = int4.arrange(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), torch.ones(1, 1))
    assert torch.equal(weight & 0xF, nibbles[:, :32]) and torch.equal(weight >> 4, nibbles[:, 32:])
    assert scale.shape == (1, 1)


# int4 with integer steps


def progressive_args(
    draw: Draw, m: int, n: int, k: int, size: int, *, tokens: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return operands whose grids have every zero point and multiplier that the format allows."""
    zero_point = (draw.ids(n, k // size, below=16) - 8).to(torch.int8)
    multiplier = 1 + draw.ids(n, k // size, below=15) % largest_multiplier(zero_point)
    grid = join_grid(multiplier.to(torch.uint8), zero_point)
    packed = pack_int4((draw.ids(n, k, below=16) - 8).to(torch.int8))
    return (
        draw.codes(m, k),
        draw.scale(m, 1) if tokens else draw.scale(1),
        packed,
        grid,
        draw.scale(n, absmax=1.0),
    )


PROGRESSIVE_TILES = [
    (1, 9, 256, 32, Tile(0, 4)),
    (3, 21, 384, 16, Tile(0, 8, stages=2)),  # K of three blocks of 16, padded to four
    (2, 9, 768, 64, Tile(0, 2, stages=3)),
    (4, 5, 256, 128, Tile(0, 4)),
    (5, 40, 768, 128, Tile(16, 32)),
    (5, 40, 1280, 32, Tile(16, 32, split_k=2)),  # five blocks in parts of three and two
    (17, 33, 384, 16, Tile(16, 32, split_k=2)),
    (5, 40, 256, 32, Tile(16, 16, split_k=3)),  # two parts have nothing to do
    (150, 20, 128, 16, Tile(16, 16)),  # more tiles along M than a group has
    (1, 1, 128, 16, Tile(16, 16)),
]


@pytest.mark.parametrize(("m", "n", "k", "size", "tile"), PROGRESSIVE_TILES)
def test_progressive_tiles(m: int, n: int, k: int, size: int, tile: Tile) -> None:
    draw = Draw(m + n + k)
    x, x_scale, packed, grid, scale = progressive_args(draw, m, n, k, size, tokens=m % 2 == 1)
    bias, scale_out = draw.normal(n), draw.scale(n, absmax=4.0 * k**0.5)
    arranged = progressive.arrange(packed, grid)
    for after in ((None, None), (bias, scale_out), (None, scale_out[:1])):
        out = Guarded(m, n, dtype=torch.float32 if after[1] is None else torch.int8)
        progressive.linear_int4_progressive(x, x_scale, *arranged, scale, *after, out=out.tensor, tile=tile)
        assert_same(out.read(), int4_progressive_linear(x, x_scale, packed, grid, scale, *after))


@pytest.mark.parametrize(("n", "k", "size"), [(5, 256, 32), (9, 384, 16), (3, 1280, 128)])
def test_progressive_weights_are_expanded_to_int8(n: int, k: int, size: int) -> None:
    _, _, packed, grid, _ = progressive_args(Draw(n), 1, n, k, size)
    out = Guarded(n, k, dtype=torch.int8)
    progressive.expand_into(*progressive.arrange(packed, grid), out.tensor)
    assert_same(out.read(), expand(packed, grid))


def test_extreme_progressive_sums_are_exact() -> None:
    """Every product at the limit of the widest K that the kernel for few tokens takes."""
    k = 8192
    for zero_point, code, multiplier in ((0, -8, 15), (-1, 7, 15), (-8, 7, 8), (7, -8, 8)):
        grid = join_grid(
            torch.full((2, k // 32), multiplier, dtype=torch.uint8),
            torch.full((2, k // 32), zero_point, dtype=torch.int8),
        )
        packed = pack_int4(torch.full((2, k), code, dtype=torch.int8))
        args = (torch.full((1, k), -127, dtype=torch.int8), torch.ones(1), packed, grid, torch.ones(2))
        out = Guarded(1, 2)
        arranged = progressive.arrange(packed, grid)
        progressive.linear_int4_progressive(
            *args[:2], *arranged, args[4], None, None, out=out.tensor, tile=Tile(0, 2)
        )
        assert_same(out.read(), int4_progressive_linear(*args, None, None))


@pytest.mark.parametrize("m", [3, 140])
def test_progressive_results_are_added_to_a_residual(m: int) -> None:
    """By tiles, and for a prompt through the expanded weight."""
    draw = Draw(5)
    x, x_scale, packed, grid, scale = progressive_args(draw, m, 20, 256, 32)
    assert bool(progressive.scratch_bytes(m, 20, 256)) == (m > 128)
    before = draw.normal(m, 20)
    residual = Guarded(m, 20, fill=before)
    arranged = progressive.arrange(packed, grid)
    progressive.linear_int4_progressive(x, x_scale, *arranged, scale, None, None, residual=residual.tensor)
    assert_same(
        residual.read(), int4_progressive_linear(x, x_scale, packed, grid, scale, None, None) + before
    )


def test_what_progressive_kernels_cannot_take() -> None:
    assert progressive.unsupported(2560, 80) is None and progressive.unsupported(128, 8) is None
    for k, groups in ((192, 6), (2560, 320)):
        assert "K must be divisible by 128" in str(progressive.unsupported(k, groups))


# What kernels share


@triton.jit
def _evaluate(x, exp, log1p, softplus, silu, rsqrt, codes, scale, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(exp + at, triton_numerics.exp(value))
    tl.store(log1p + at, triton_numerics.log1p(tl.minimum(tl.abs(value), 1.0)))
    tl.store(softplus + at, triton_numerics.softplus(value))
    tl.store(silu + at, triton_numerics.silu(value))
    tl.store(rsqrt + at, triton_numerics.rsqrt(tl.abs(value)))
    tl.store(codes + at, triton_numerics.quantize(value, triton_numerics.reciprocal(tl.load(scale + at))))


def test_shared_functions_are_accurate() -> None:
    draw = Draw(6)
    size = 2048
    x = draw.normal(size) * torch.logspace(-6, 1.3, size)
    x[:4] = torch.tensor([20.0, -20.0, 80.0, -80.0])
    scale = draw.scale(size, absmax=4.0)
    x[4:260] = (torch.arange(256) - 127.5) * scale[4:260]  # the middles between codes
    names = ("exp", "log1p", "softplus", "silu", "rsqrt")
    results = {name: Guarded(size) for name in names}
    codes = Guarded(size, dtype=torch.int8)
    _evaluate[(1,)](x, *(results[name].tensor for name in names), codes.tensor, scale, SIZE=size)
    exact = x.double()
    wanted = {
        "exp": exact.exp(),
        "log1p": exact.abs().clamp(max=1.0).log1p(),
        "softplus": torch.nn.functional.softplus(exact, threshold=1e9),
        "silu": torch.nn.functional.silu(exact),
        "rsqrt": exact.abs().rsqrt(),
    }
    for name in names:
        relative = ((results[name].read().double() - wanted[name]) / wanted[name]).abs().max()
        assert float(relative) < float32_limit(1), name
    assert_equal_codes(codes.read(), numerics.quantize(x, scale))


@triton.jit
def _dot4(a, b, c, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, triton_numerics.dot4(tl.load(a + at), tl.load(b + at), tl.load(c + at), False))


def test_dot4_adds_four_products() -> None:
    draw = Draw(7)
    a, b, c = draw.codes(16, 4), draw.codes(16, 4), draw.ids(16, below=1000).int()
    out = Guarded(16, dtype=torch.int32)
    _dot4[(1,)](a.view(torch.int32), b.view(torch.int32), c, out.tensor, SIZE=16)
    assert torch.equal(out.read(), (a.int() * b.int()).sum(1, dtype=torch.int32) + c)


def test_an_unknown_token_has_no_vector() -> None:
    draw = Draw(8)
    out = Guarded(3, 5)
    ids = torch.tensor([1, 7, -1])
    embedding.embed_int8(ids, draw.codes(7, 5), draw.scale(7), out=out.tensor)
    assert out.read()[0].isfinite().all() and out.read()[1:].isnan().all()


def test_wide_rows_are_quantised_in_steps() -> None:
    x = Draw(9).normal(2, 2500)
    out, scale = Guarded(2, 2500, dtype=torch.int8), Guarded(2, 1)
    quantizing.codes_per_token(x, 8, out=out.tensor, scale_out=scale.tensor)
    assert_same((out.read(), scale.read()), quantize.quantize_per_token(x, 8))


# Tiles


def test_a_recorded_tile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path))
    tile = Tile(16, 32, 64, 2, 8, 3)
    assert find("a device", "int8_linear", m=9, n=10, k=20) is None
    assert record("a device", "int8_linear", n=10, k=20, tiles={16: tile}) == table_file()
    record("a device", "int8_linear", n=10, k=20, tiles={4: Tile(0, 4)})
    assert find("a device", "int8_linear", m=9, n=10, k=20) == tile
    assert find("a device", "int8_linear", m=3, n=10, k=20) == Tile(0, 4)
    for m, n, k in ((17, 10, 20), (9, 11, 20), (9, 10, 21)):
        assert find("a device", "int8_linear", m=m, n=n, k=k) is None
    assert find("another device", "int8_linear", m=9, n=10, k=20) is None


def test_a_damaged_table_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path))
    table_file().write_text("{")
    record("a device", "int8_linear", n=10, k=20, tiles={1: Tile(0, 4)})
    assert "not readable" in caplog.text
    assert find("a device", "int8_linear", m=1, n=10, k=20) == Tile(0, 4)


def test_buckets_and_names() -> None:
    assert [bucket(m) for m in (1, 2, 3, 4, 5, 16, 17)] == [1, 2, 4, 4, 8, 16, 32]
    assert key(10, 20) == "10x20"


@pytest.mark.parametrize(("op", "m"), list(itertools.product(linear_tuning.OPS, (1, 4, 20))))
def test_candidates_agree(op: str, m: int) -> None:
    """Tiles of one product give the same bits, since any of them may end in the table."""
    product = linear_tuning.Product(op, m, 40, 256)
    tiles = {tile for tile in linear_tuning.candidates(product) if tile.block_m <= 32}
    setup = linear_tuning.Setup(product, torch.device("cpu"), copies=1)
    expected = setup.expected()
    for tile in sorted(tiles, key=str)[::4]:
        setup.result.zero_()
        for launch in setup.launches(tile):
            launch()
        assert_same(setup.result, expected)
