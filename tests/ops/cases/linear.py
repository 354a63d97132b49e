"""Linear layers: int8, int4 in groups, progressive int4, int4 beside int8 outliers, float16 outlier columns, floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssmquant.formats.int4_progressive import largest_multiplier
from ssmquant.ops.float_linear import float_linear
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.ops.int4_progressive_linear import int4_progressive_linear
from ssmquant.ops.int4_progressive_linear.reference import join_grid
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.mixed_linear import mixed_linear
from ssmquant.ops.outlier_linear import outlier_columns, outlier_linear

from .. import naive
from .base import Args, Case, Draw, Suite, assert_outputs

# int8_linear


def _linear_cases() -> Iterator[Case]:
    def make(
        *tokens: int, k: int, n: int, x: int = 1, w: int | None = None, bias: bool = False, out: int = 0
    ) -> Callable[[Draw], Args]:
        """Codes ``[*tokens, k]`` and ``[n, k]``; x, w and out are the numbers of scales; x = 0: one a token."""

        def args(draw: Draw) -> Args:
            return (
                draw.codes(*tokens, k), draw.scale(1) if x else draw.scale(*tokens, 1), draw.codes(n, k),
                draw.scale(n if w is None else w, absmax=1.0), draw.normal(n) if bias else None,
                draw.scale(out, absmax=8.0 * k**0.5) if out else None,
            )  # fmt: skip

        return args

    def extreme(draw: Draw) -> Args:
        """Every product at the limit, so that sums reach ±127 * 127 * K."""
        x, w = torch.full((3, 1041), 127, dtype=torch.int8), torch.full((4, 1041), 127, dtype=torch.int8)
        w[::2] = -127
        return x, draw.scale(1), w, draw.scale(4), None, None

    yield Case("one token, one output", make(1, k=1, n=1))
    yield Case("a vector", make(k=19, n=6))
    yield Case("2x3 tokens", make(2, 3, k=33, n=5))
    yield Case("one weight scale", make(5, k=33, n=7, w=1))
    yield Case("a scale a token", make(2, 3, k=33, n=5, x=0))
    yield Case("bias", make(5, k=17, n=7, bias=True))
    yield Case("codes out", make(9, k=65, n=31, out=1))
    yield Case("codes out, a scale a channel, bias", make(9, k=65, n=31, bias=True, out=31))
    yield Case("codes out, a scale a token", make(9, k=65, n=31, x=0, out=1))
    yield Case("K of one exact block", make(3, k=1040, n=4))
    yield Case("K one above", make(3, k=1041, n=4))
    yield Case("K of five blocks", make(3, k=5120, n=9, bias=True))
    yield Case("every code at the limit", extreme)
    yield Case("no tokens", make(0, k=8, n=3))


def _compare_linear(args: Args, got: Tensor) -> None:
    # The sum is exact: what is left are the roundings of the epilogue.
    assert_outputs(got, naive.int8_linear(*args), args[-1], 1)


def _int4_cases() -> Iterator[Case]:
    def make(
        *tokens: int, k: int, groups: int, n: int, x: int = 1, bias: bool = False, out: int = 0
    ) -> Callable[[Draw], Args]:
        """Codes ``[*tokens, k]``, bytes ``[n, k / 2]``; x and out are the numbers of scales; x = 0: one a token."""

        def args(draw: Draw) -> Args:
            return (
                draw.codes(*tokens, k), draw.scale(1) if x else draw.scale(*tokens, 1),
                draw.ids(n, k // 2, below=256).to(torch.uint8), draw.scale(n, groups, absmax=1.0),
                draw.normal(n) if bias else None, draw.scale(out, absmax=0.5 * k**0.5) if out else None,
            )  # fmt: skip

        return args

    yield Case("one byte", make(1, k=2, groups=1, n=1))
    yield Case("one group", make(2, 3, k=34, groups=1, n=5))
    yield Case("groups of odd size", make(5, k=42, groups=6, n=7))
    yield Case("a scale a token", make(2, 3, k=34, groups=2, n=5, x=0))
    yield Case("bias", make(5, k=42, groups=3, n=7, bias=True))
    yield Case("codes out", make(9, k=64, groups=4, n=31, out=1))
    yield Case("codes out, a scale a channel, bias", make(9, k=64, groups=4, n=31, bias=True, out=31))
    yield Case("groups of 128", make(3, k=1280, groups=10, n=9, bias=True))
    yield Case("no tokens", make(0, k=8, groups=2, n=3))


def _compare_int4(args: Args, got: Tensor) -> None:
    # The sums of a group are exact: what is left is the sum over groups.
    assert_outputs(got, naive.int4_linear(*args), args[-1], args[3].shape[1])


# int4_progressive_linear


def _progressive_cases() -> Iterator[Case]:
    def make(
        *tokens: int, k: int, groups: int, n: int, x: int = 1, bias: bool = False, out: int = 0
    ) -> Callable[[Draw], Args]:
        """As for int4, with any zero points, and any multipliers that go with them."""

        def args(draw: Draw) -> Args:
            zero_point = (draw.ids(n, groups, below=16) - 8).to(torch.int8)
            multiplier = (1 + draw.ids(n, groups, below=15)).minimum(largest_multiplier(zero_point))
            return (
                draw.codes(*tokens, k), draw.scale(1) if x else draw.scale(*tokens, 1),
                draw.ids(n, k // 2, below=256).to(torch.uint8), join_grid(multiplier.to(torch.uint8), zero_point),
                draw.scale(n, absmax=1.0),
                draw.normal(n) if bias else None, draw.scale(out, absmax=0.5 * k**0.5) if out else None,
            )  # fmt: skip

        return args

    def extreme(draw: Draw) -> Args:
        x = torch.full((2, 66), -127, dtype=torch.int8)
        codes = torch.tensor([[-8], [7], [7]], dtype=torch.int8).expand(3, 66)
        zero_point = torch.tensor([[0], [-1], [-8]], dtype=torch.int8)
        grid = join_grid(largest_multiplier(zero_point).to(torch.uint8), zero_point)
        return (x, draw.scale(1), pack_int4(codes), grid, draw.scale(3), None, None)

    yield Case("one byte", make(1, k=2, groups=1, n=1))
    yield Case("one group", make(2, 3, k=34, groups=1, n=5))
    yield Case("groups of odd size", make(5, k=42, groups=6, n=7))
    yield Case("a scale a token", make(2, 3, k=34, groups=2, n=5, x=0))
    yield Case("bias", make(5, k=42, groups=3, n=7, bias=True))
    yield Case("codes out", make(9, k=64, groups=4, n=31, out=1))
    yield Case("codes out, a scale a channel, bias", make(9, k=64, groups=4, n=31, bias=True, out=31))
    yield Case("groups of 16", make(3, k=1280, groups=80, n=9, bias=True))
    yield Case("groups of 32", make(2, k=320, groups=10, n=33, out=33))
    yield Case("groups of 128", make(17, k=1280, groups=10, n=9, bias=True))
    yield Case("every code at the limit", extreme)
    yield Case("no tokens", make(0, k=8, groups=2, n=3))


def _compare_progressive(args: Args, got: Tensor) -> None:
    # The sum over all of K is exact: what is left are the roundings of the epilogue.
    assert_outputs(got, naive.int4_progressive_linear(*args), args[-1], 1)


# mixed_linear


def _mixed_cases() -> Iterator[Case]:
    def make(
        *tokens: int, groups: int, size: int, outliers: int, n: int, bits: int = 4, clip: float = 0.9,
        bias: bool = False, out: int = 0, dtype: torch.dtype = torch.float32,
    ) -> Callable[[Draw], Args]:  # fmt: skip
        """Floats ``[*tokens, groups * size + outliers]``, the outliers ten times the rest; out: number of scales."""

        def args(draw: Draw) -> Args:
            ordinary = groups * size
            order = draw.normal(ordinary + outliers).argsort()
            x = draw.normal(*tokens, ordinary + outliers) * (1.0 + 9.0 * (order.argsort() >= ordinary))
            return (
                x.to(dtype), order.int(), draw.ids(n, ordinary // 2, below=256).to(torch.uint8),
                draw.scale(n, groups, absmax=1.0), draw.codes(n, outliers), draw.scale(n, absmax=1.0), bits, clip,
                draw.normal(n) if bias else None, draw.scale(out, absmax=0.5) if out else None,
            )  # fmt: skip

        return args

    def extremes(draw: Draw) -> Args:
        """Tokens whose groups are zero, tiny or huge, and one with exact middles between two codes."""
        x, *rest = make(4, groups=2, size=8, outliers=3, n=5, clip=1.0)(draw)
        middles = torch.cat([torch.tensor([7.0, 7.0, -7.0]), torch.arange(16) - 7.5])[rest[0].argsort()]
        return torch.stack([x[0] * 0.0, x[1] * 1e-30, x[2] * 1e30, middles]), *rest

    yield Case("one of each", make(1, groups=1, size=2, outliers=1, n=1))
    yield Case("a vector", make(groups=3, size=4, outliers=5, n=7))
    yield Case("2x3 tokens", make(2, 3, groups=3, size=4, outliers=5, n=7))
    yield Case("int8 activations", make(2, 3, groups=3, size=4, outliers=5, n=7, bits=8, clip=1.0))
    yield Case("groups of odd size, bias", make(5, groups=6, size=7, outliers=3, n=5, bias=True))
    yield Case("half precision", make(5, groups=2, size=8, outliers=3, n=5, dtype=torch.float16))
    yield Case("zeros, tiny and large ones, middles", extremes)
    yield Case("codes out", make(9, groups=4, size=16, outliers=8, n=31, out=1))
    yield Case(
        "codes out, a scale a channel, bias", make(9, groups=4, size=16, outliers=8, n=31, bias=True, out=31)
    )
    yield Case("groups of 128", make(3, groups=10, size=128, outliers=128, n=9, bias=True))
    yield Case("no tokens", make(0, groups=2, size=4, outliers=2, n=3))


def _compare_mixed(args: Args, got: Tensor) -> None:
    # Codes are exact, and so are the sums of a group: what is left is the sum over groups and outliers.
    assert_outputs(got, naive.mixed_linear(*args), args[-1], args[3].shape[1] + 1)


# outlier_linear


def _outlier_cases() -> Iterator[Case]:
    def make(
        *tokens: int, k: int, n: int, outliers: int = 3, w: int | None = None, bias: bool = False, out: int = 0,
        dtype: torch.dtype = torch.float32, threshold: float = 6.0,
    ) -> Callable[[Draw], Args]:  # fmt: skip
        """Floats ``[*tokens, k]`` below the threshold but for an element of some columns; out: number of scales."""

        def args(draw: Draw) -> Args:
            x = draw.uniform(*tokens, k, low=-threshold, high=threshold) * 0.9
            for column in draw.normal(k).argsort()[:outliers].tolist():
                if x.numel():
                    x.reshape(-1, k)[int(draw.ids(1, below=x.numel() // k)), column] = 4.0 * threshold
            return (
                x.to(dtype), threshold, draw.codes(n, k), draw.scale(n if w is None else w, absmax=1.0),
                draw.normal(n) if bias else None, draw.scale(out, absmax=8.0 * k**0.5) if out else None,
            )  # fmt: skip

        return args

    def at_the_threshold(draw: Draw) -> Args:
        """6 is an outlier, the float16 number before it is none; a float32 between the two is rounded to one first."""
        x, *rest = make(4, k=8, n=5, outliers=0)(draw)
        x[0, 1], x[1, 2], x[2, 3], x[3, 4] = 6.0, -6.0, 6.0 - 2**-8, 6.0 - 2**-11
        return x, *rest

    def extremes(draw: Draw) -> Args:
        """Tokens of zeros, of outliers alone, of tiny numbers, and with exact middles between two codes."""
        x, *rest = make(4, k=24, n=5, outliers=0, threshold=200.0)(draw)
        middles = torch.cat([torch.arange(23) - 11.5, torch.tensor([127.0])])
        return torch.stack([x[0] * 0.0, x[0] * 0.0 + 300.0, x[2] * 1e-7, middles]), *rest

    yield Case("no outliers", make(2, 3, k=33, n=5, outliers=0))
    yield Case("a vector", make(k=19, n=6))
    yield Case("2x3 tokens", make(2, 3, k=33, n=5))
    yield Case("one weight scale", make(5, k=33, n=7, w=1))
    yield Case("every column has one", make(9, k=12, n=7, outliers=12))
    yield Case("bias", make(5, k=17, n=7, bias=True))
    yield Case("half precision", make(5, k=33, n=7, dtype=torch.float16))
    yield Case("another threshold", make(5, k=33, n=7, threshold=0.5))
    yield Case("at the threshold", at_the_threshold)
    yield Case("zeros, outliers alone, tiny ones, middles", extremes)
    yield Case("codes out", make(9, k=65, n=31, out=1))
    yield Case("codes out, a scale a channel, bias", make(9, k=65, n=31, bias=True, out=31))
    yield Case("K above one exact block", make(3, k=1041, n=4))
    yield Case("no tokens", make(0, k=8, n=3))


def _compare_outlier(args: Args, got: Tensor) -> None:
    # The integer sum is exact: what is left is the sum over the outlier columns, and its sum with the other.
    columns = int(outlier_columns(args[0], args[1]).sum())
    assert_outputs(got, naive.outlier_linear(*args), args[-1], columns + 1)


# float_linear


def _float_cases() -> Iterator[Case]:
    def make(
        *tokens: int, k: int, n: int, form: str = "float16", groups: int = 1, bias: bool = False, out: int = 0,
        size: float = 1.0,
    ) -> Callable[[Draw], Args]:  # fmt: skip
        """Floats ``[*tokens, k]`` and a weight of some form; out is the number of scales."""

        def args(draw: Draw) -> Args:
            x = draw.normal(*tokens, k, size=size)
            match form:
                case "int8" | "int8, one scale":
                    weight = draw.codes(n, k), draw.scale(n if form == "int8" else 1), None, None
                case "int4":
                    weight = draw.ids(n, k // 2, below=256).to(torch.uint8), draw.scale(n, groups), None, None
                case "int4, zero points":
                    zero_point = (draw.ids(n, groups, below=16) - 8).to(torch.int8)
                    packed = draw.ids(n, k // 2, below=256).to(torch.uint8)
                    weight = packed, draw.scale(n, groups), zero_point, None
                case "int4, progressive":
                    zero_point = (draw.ids(n, groups, below=16) - 8).to(torch.int8)
                    multiplier = (1 + draw.ids(n, groups, below=15)).minimum(largest_multiplier(zero_point))
                    grid = join_grid(multiplier.to(torch.uint8), zero_point)
                    weight = draw.ids(n, k // 2, below=256).to(torch.uint8), draw.scale(n), None, grid
                case _:
                    weight = draw.normal(n, k).to(getattr(torch, form)), None, None, None
            scale_out = draw.scale(out, absmax=0.5 * size * k**0.5) if out else None
            return x, *weight, draw.normal(n) if bias else None, scale_out

        return args

    def of_every_size(draw: Draw) -> Args:
        """Tokens of zeros, tiny, large and ordinary numbers, and one whose elements differ by ten decades."""
        x, *rest = make(5, k=40, n=7)(draw)
        return x * torch.stack(
            [torch.full((40,), size) for size in (0.0, 1e-30, 1e30, 1.0)] + [torch.logspace(-9, 1, 40)]
        ), *rest

    yield Case("float", make(2, 3, k=33, n=5, form="float32", bias=True))
    yield Case("bfloat16", make(5, k=24, n=7, form="bfloat16"))
    for form, k, groups in (
        ("float16", 40, 1),
        ("int8", 40, 1),
        ("int8, one scale", 40, 1),
        ("int4", 64, 4),
        ("int4, zero points", 64, 4),
        ("int4, progressive", 64, 4),
    ):
        yield Case(f"{form}, a vector", make(k=k, n=6, form=form, groups=groups))
        yield Case(f"{form}, 4 tokens", make(2, 2, k=k, n=9, form=form, groups=groups, bias=True))
        yield Case(f"{form}, 7 tokens", make(7, k=k, n=9, form=form, groups=groups, bias=True))
        yield Case(f"{form}, 21 tokens", make(21, k=k, n=33, form=form, groups=groups, out=1))
        yield Case(
            f"{form}, codes out, a scale a channel",
            make(3, k=k, n=9, form=form, groups=groups, bias=True, out=9),
        )
    yield Case("float16, odd sizes", make(3, k=33, n=5))
    yield Case("int8, odd sizes", make(2, k=37, n=5, form="int8"))
    yield Case("int4, one byte", make(4, k=2, n=3, form="int4"))
    yield Case("int4, one group", make(3, k=34, n=5, form="int4"))
    yield Case("int4, groups of 6", make(5, k=42, n=7, form="int4", groups=7))
    yield Case("int4, groups of odd size", make(5, k=42, n=7, form="int4, zero points", groups=6))
    yield Case("int4, groups of 128", make(2, k=1280, n=9, form="int4, zero points", groups=10, bias=True))
    yield Case("int4, progressive, groups of 16", make(19, k=320, n=9, form="int4, progressive", groups=20))
    yield Case("float16, K of several blocks", make(4, k=2600, n=5))
    yield Case("float16, K of several blocks, 17 tokens", make(17, k=1032, n=5))
    yield Case("tokens of every size", of_every_size)
    yield Case("large numbers", make(18, k=40, n=7, size=1e6))
    yield Case("no tokens", make(0, k=8, n=3))


def _compare_float(args: Args, got: Tensor) -> None:
    assert_outputs(got, naive.float_linear(*args), args[-1], args[0].shape[-1])


SUITES = (
    Suite(float_linear, tuple(_float_cases()), _compare_float, scale_out=True),
    Suite(int8_linear, tuple(_linear_cases()), _compare_linear, scale_out=True),
    Suite(int4_linear, tuple(_int4_cases()), _compare_int4, scale_out=True),
    Suite(int4_progressive_linear, tuple(_progressive_cases()), _compare_progressive, scale_out=True),
    Suite(mixed_linear, tuple(_mixed_cases()), _compare_mixed, scale_out=True),
    Suite(outlier_linear, tuple(_outlier_cases()), _compare_outlier, scale_out=True),
)
