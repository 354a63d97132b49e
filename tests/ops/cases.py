"""Cases and comparison of every op, for its reference and for every kernel.

    for case in SUITES["ssd"].cases:
        args = case.args()
        SUITES["ssd"].compare(args, run(*args))      # AssertionError unless within the op's tolerance class

Arguments are drawn from a seed that belongs to the case's name: small shapes, odd sizes, every combination of codes and
floats that the op takes. Results are compared with the implementations in `naive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.ops.gate import gate
from ssmquant.ops.gated_rms_norm import gated_rms_norm
from ssmquant.ops.hadamard import hadamard
from ssmquant.ops.int4_embedding import int4_embedding
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.mixed_linear import mixed_linear
from ssmquant.ops.outlier_linear import outlier_columns, outlier_linear
from ssmquant.ops.quantize import quantize_per_token, quantize_static
from ssmquant.ops.registry import Op
from ssmquant.ops.rms_norm import rms_norm
from ssmquant.ops.selective_scan import selective_scan
from ssmquant.ops.ssd import ssd
from ssmquant.tolerance import assert_equal_codes, assert_float32, assert_half, assert_requantised

from . import naive

__all__ = ["SUITES", "Case", "Draw", "Suite"]

Args = tuple[Any, ...]


class Draw:
    """Random tensors, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * size

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def codes(self, *shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=self.generator, dtype=torch.int8)

    def scale(self, *shape: int, absmax: float = 3.0) -> Tensor:
        """Return scales of ranges between half of ``absmax`` and all of it."""
        return self.uniform(*shape, low=absmax / 254, high=absmax / 127)

    def ids(self, *shape: int, below: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator)


@dataclass(frozen=True)
class Case:
    """Arguments of an op.

    Attributes:
        name: readable, unique in its suite.
        make: the arguments, from random draws.
        settled: whether arguments serve as a case: an int8 or float16 state whose rounding hangs on the last bits of a
            float32 sum would set correct implementations apart.
    """

    name: str
    make: Callable[[Draw], Args]
    settled: Callable[[Args], bool] = lambda args: True

    def args(self, device: str = "cpu") -> Args:
        first = crc32(self.name.encode())
        args = next(args for seed in count(first) if self.settled(args := self.make(Draw(seed))))
        return tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


@dataclass(frozen=True)
class Suite:
    """An op, its cases, and the comparison that results have to stand.

    Attributes:
        op: the op.
        cases: what it is run with.
        compare: given arguments and results, raises AssertionError unless they are right.
        scale_out: whether its last argument is the optional scale of an int8 result.
    """

    op: Op
    cases: tuple[Case, ...]
    compare: Callable[[Args, Any], None]
    scale_out: bool = False


def _outputs(got: Any, expected: Tensor, scale_out: Tensor | None, k: int) -> None:
    if scale_out is None:
        assert_float32(got, expected, k)
    else:
        assert_requantised(got, expected)


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
    _outputs(got, naive.int8_linear(*args), args[-1], 1)


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
    _outputs(got, naive.int4_linear(*args), args[-1], args[3].shape[1])


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
    _outputs(got, naive.mixed_linear(*args), args[-1], args[3].shape[1] + 1)


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
    _outputs(got, naive.outlier_linear(*args), args[-1], columns + 1)


# causal_conv1d


def _conv_cases() -> Iterator[Case]:
    def make(
        batch: int, length: int, channels: int, taps: int = 4, *, x: int = 0, w: int = 0,
        bias: bool = True, out: int = 0, rest: torch.dtype = torch.float32,
    ) -> Callable[[Draw], Args]:  # fmt: skip
        """x, w and out are the numbers of scales; 0 for a float."""

        def args(draw: Draw) -> Args:
            inputs = draw.codes if x else draw.normal
            return (
                inputs(batch, length, channels), draw.scale(x) if x else None,
                draw.codes(channels, taps) if w else draw.normal(channels, taps).to(rest),
                draw.scale(w) if w else None, draw.normal(channels) if bias else None,
                inputs(batch, channels, taps), draw.scale(out, absmax=12.0) if out else None,
            )  # fmt: skip

        return args

    yield Case("float", make(2, 9, 5))
    yield Case("float, weight at rest in half", make(2, 9, 5, rest=torch.float16))
    yield Case("float, no bias", make(2, 9, 5, bias=False))
    yield Case("float, codes out", make(2, 9, 5, out=1))
    yield Case("codes", make(2, 9, 5, x=1, w=1))
    yield Case("codes, a scale a channel", make(2, 9, 5, x=5, w=5))
    yield Case("codes in and out", make(2, 9, 7, x=1, w=7, out=1))
    yield Case("codes in and out, a scale a channel", make(2, 9, 7, x=7, w=7, out=7))
    yield Case("codes, one step", make(3, 1, 7, x=7, w=7, out=7))
    yield Case("codes, shorter than the taps", make(3, 2, 7, x=7, w=7, bias=False))
    yield Case("codes, two taps", make(1, 5, 6, taps=2, x=1, w=6))
    yield Case("code inputs, float weight", make(2, 9, 5, x=5))
    yield Case("float inputs, code weight", make(2, 9, 5, w=5))


def _compare_conv(args: Args, got: tuple[Tensor, Tensor]) -> None:
    y, newest = naive.causal_conv1d(*args)
    _outputs(got[0], y, args[-1], args[2].shape[1])
    assert_equal_codes(got[1].contiguous().view(torch.int8), newest.contiguous().view(torch.int8), "state")


# Scans


def _settled(with_margin: Callable[..., tuple[Tensor, Tensor, float]]) -> Callable[[Args], bool]:
    # A float32 state of these cases is off by about 1e-4 codes at most, of int8 as of float16.
    return lambda args: with_margin(*args)[2] > 2e-3


def _state(draw: Draw, shape: tuple[int, ...], kind: str) -> tuple[Tensor, Tensor | None]:
    match kind:
        case "float16":
            return draw.normal(*shape).half(), None
        case "int8":
            return draw.codes(*shape), draw.scale(*shape[1:], absmax=6.0)
        case "int8, one scale":
            return draw.codes(*shape), draw.scale(*[1] * (len(shape) - 1), absmax=6.0)
    return draw.normal(*shape), None


def _inputs(draw: Draw, *inputs: tuple[tuple[int, ...], int, float], scales: str) -> list[Tensor | None]:
    """Return data and scale of each input (shape, channels, size); scales: none, tensor or channel."""
    found: list[Tensor | None] = []
    for shape, channels, size in inputs:
        if scales == "none":
            found += [draw.normal(*shape, size=size), None]
        else:
            width = 1 if scales == "tensor" else channels
            found += [draw.codes(*shape), draw.scale(width, absmax=3 * size)]
    return found


def _ssd_cases() -> Iterator[Case]:
    def make(
        batch: int, length: int, heads: int, headdim: int, groups: int, d_state: int, *, scales: str = "none",
        state: str = "float32", interval: int = 0, dt_limit: tuple[float, float] = (0.0, float("inf")),
    ) -> Callable[[Draw], Args]:  # fmt: skip
        def args(draw: Draw) -> Args:
            shared = (batch, length, groups, d_state)
            x, x_scale, dt, dt_scale, B, B_scale, C, C_scale = _inputs(
                draw, ((batch, length, heads, headdim), heads * headdim, 1.0), ((batch, length, heads), heads, 1.0),
                (shared, groups * d_state, 1.0), (shared, groups * d_state, 1.0), scales=scales,
            )  # fmt: skip
            return (
                x, x_scale, dt, dt_scale, -draw.uniform(heads, low=0.1, high=4.0), B, B_scale, C, C_scale,
                draw.normal(heads), draw.uniform(heads, low=-4.0, high=1.0), *dt_limit,
                *_state(draw, (batch, heads, headdim, d_state), state), interval,
            )  # fmt: skip

        return args

    def reduced(*sizes: int, state: str, interval: int, scales: str = "none") -> Case:
        return Case(
            f"{state} state every {interval}, {sizes[1]} tokens, scales: {scales}",
            make(*sizes, state=state, interval=interval, scales=scales),
            _settled(naive.ssd_with_margin),
        )

    yield Case("one group", make(2, 7, 3, 5, 1, 4))
    yield Case("two groups", make(2, 7, 4, 3, 2, 5))
    yield Case("a group a head", make(1, 6, 3, 4, 3, 2))
    yield Case("one step", make(3, 1, 4, 3, 2, 5))
    yield Case("several chunks", make(1, 131, 2, 3, 1, 4))
    yield Case("dt limits", make(2, 9, 4, 3, 2, 5, dt_limit=(0.05, 0.4)))
    yield Case("codes, a scale a tensor", make(2, 7, 4, 3, 2, 5, scales="tensor"))
    yield Case("codes, a scale a channel", make(2, 7, 4, 3, 2, 5, scales="channel"))
    yield Case("codes, one step", make(2, 1, 4, 3, 2, 5, scales="channel", dt_limit=(0.05, 0.4)))
    yield reduced(1, 8, 2, 3, 1, 4, state="float16", interval=4)
    yield reduced(1, 11, 2, 3, 2, 4, state="int8", interval=4)
    yield reduced(1, 11, 2, 3, 2, 4, state="int8, one scale", interval=4, scales="channel")
    yield reduced(1, 6, 2, 3, 1, 4, state="int8", interval=1)
    yield reduced(2, 5, 2, 3, 1, 4, state="int8", interval=7)
    yield reduced(1, 150, 2, 2, 1, 3, state="int8", interval=70)


def _selective_scan_cases() -> Iterator[Case]:
    def make(
        batch: int, length: int, channels: int, d_state: int, *,
        scales: str = "none", state: str = "float32", interval: int = 0,
    ) -> Callable[[Draw], Args]:  # fmt: skip
        def args(draw: Draw) -> Args:
            inner, shared = (batch, length, channels), (batch, length, d_state)
            x, x_scale, dt, dt_scale, B, B_scale, C, C_scale = _inputs(
                draw, (inner, channels, 1.0), (inner, channels, 1.0), (shared, d_state, 1.0), (shared, d_state, 1.0),
                scales=scales,
            )  # fmt: skip
            return (
                x, x_scale, dt, dt_scale, -draw.uniform(channels, d_state, low=0.1, high=4.0), B, B_scale, C, C_scale,
                draw.normal(channels), draw.uniform(channels, low=-4.0, high=1.0),
                *_state(draw, (batch, channels, d_state), state), interval,
            )  # fmt: skip

        return args

    def reduced(*sizes: int, state: str, interval: int, scales: str = "none") -> Case:
        return Case(
            f"{state} state every {interval}, {sizes[1]} tokens, scales: {scales}",
            make(*sizes, state=state, interval=interval, scales=scales),
            _settled(naive.selective_scan_with_margin),
        )

    yield Case("float", make(2, 7, 5, 4))
    yield Case("one step", make(3, 1, 5, 4))
    yield Case("several chunks", make(1, 75, 3, 4))
    yield Case("codes, a scale a tensor", make(2, 7, 5, 4, scales="tensor"))
    yield Case("codes, a scale a channel", make(2, 7, 5, 4, scales="channel"))
    yield Case("codes, one step", make(2, 1, 5, 4, scales="channel"))
    yield reduced(1, 8, 6, 4, state="float16", interval=4)
    yield reduced(1, 11, 6, 4, state="int8", interval=4)
    yield reduced(1, 11, 6, 4, state="int8, one scale", interval=4, scales="channel")
    yield reduced(1, 6, 6, 4, state="int8", interval=1)
    yield reduced(2, 5, 6, 4, state="int8", interval=7)
    yield reduced(1, 80, 4, 3, state="int8", interval=35)


def _compare_scan(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Args, Any], None]:
    def compare(args: Args, got: tuple[Tensor, Tensor]) -> None:
        y, state = op(*args)
        length, d_state = args[0].shape[1], args[5].shape[-1]
        assert_float32(got[0], y, length * d_state, "y")
        match args[-3].dtype:
            case torch.int8:
                assert_requantised(got[1], state, "state")
            case torch.float16:
                assert_half(got[1], state, "state")
            case _:
                assert_float32(got[1], state, length, "state")

    return compare


# Norms, gate, Hadamard


def _rms_norm_cases() -> Iterator[Case]:
    def make(
        *shape: int, dtype: torch.dtype = torch.float32, size: float = 1.0, eps: float = 1e-5, out: int = 0
    ) -> Callable[[Draw], Args]:
        return lambda draw: (
            draw.normal(*shape, size=size).to(dtype), draw.normal(shape[-1]), eps, draw.scale(out) if out else None,
        )  # fmt: skip

    yield Case("odd width", make(2, 3, 7))
    yield Case("a vector", make(33))
    yield Case("width 300", make(5, 300))
    yield Case("small against eps", make(4, 9, size=1e-3))
    yield Case("bfloat16", make(4, 65, dtype=torch.bfloat16))
    yield Case("codes out", make(7, 65, out=1))
    yield Case("codes out, a scale a channel", make(7, 65, out=65))


def _gate_cases() -> Iterator[Case]:
    def make(*shape: int, z: int = 0, rotate: bool = False, out: int = 0) -> Callable[[Draw], Args]:
        return lambda draw: (
            draw.normal(*shape), (draw.codes if z else draw.normal)(*shape), draw.scale(z) if z else None,
            rotate, draw.scale(out) if out else None,
        )  # fmt: skip

    yield Case("float", make(2, 3, 7))
    yield Case("float, Hadamard", make(5, 24, rotate=True))
    yield Case("code z", make(2, 3, 7, z=1))
    yield Case("code z, a scale a channel", make(2, 3, 7, z=7))
    yield Case("codes out", make(2, 3, 7, z=7, out=1))
    yield Case("codes out, a scale a channel, Hadamard", make(5, 40, z=40, rotate=True, out=40))


def _gated_norm_cases() -> Iterator[Case]:
    def make(
        *shape: int, groups: int = 1, z: int = 0, size: float = 1.0, rotate: bool = False, out: int = 0
    ) -> Callable[[Draw], Args]:
        return lambda draw: (
            draw.normal(*shape, size=size), (draw.codes if z else draw.normal)(*shape), draw.scale(z) if z else None,
            draw.normal(shape[-1]), 1e-5, shape[-1] // groups, rotate, draw.scale(out) if out else None,
        )  # fmt: skip

    yield Case("float", make(2, 3, 7))
    yield Case("three groups", make(2, 3, 15, groups=3))
    yield Case("small against eps", make(4, 10, size=1e-3))
    yield Case("three groups, Hadamard", make(5, 24, groups=3, rotate=True))
    yield Case("code z", make(2, 3, 7, z=1))
    yield Case("code z, a scale a channel", make(2, 3, 14, groups=2, z=14))
    yield Case("codes out", make(2, 3, 14, z=14, groups=2, out=1))
    yield Case("codes out, a scale a channel, Hadamard", make(5, 40, z=40, rotate=True, out=40))


def _hadamard_cases() -> Iterator[Case]:
    for n in (1, 2, 8, 12, 20, 24, 28, 36, 40, 44, 60, 120):
        yield Case(f"size {n}", lambda draw, n=n: (draw.normal(2, 3, n),))


def _compare_norm(op: Callable[..., Tensor]) -> Callable[[Args, Any], None]:
    return lambda args, got: _outputs(got, op(*args), args[-1], args[0].shape[-1])


def _compare_gate(args: Args, got: Tensor) -> None:
    _outputs(got, naive.gate(*args), args[-1], args[0].shape[-1] if args[3] else 1)


def _compare_hadamard(args: Args, got: Tensor) -> None:
    assert_float32(got, naive.hadamard(*args), args[0].shape[-1])


# Quantisation, embedding: no sum, so nothing is left to the implementation


def _middles(draw: Draw) -> Args:
    """Exact middles between two codes under scales that are powers of two, and values beyond the range."""
    steps = torch.cat([torch.arange(-130, 130) + 0.5, torch.tensor([-1e30, 1e30, 0.0, -0.0])])
    scale = 2.0 ** torch.arange(-3, 4).float()
    return steps[:, None] * scale, scale


def _static_cases() -> Iterator[Case]:
    yield Case("one scale", lambda draw: (draw.normal(2, 3, 7), draw.scale(1)))
    yield Case("a scale a channel", lambda draw: (draw.normal(5, 33), draw.scale(33)))
    yield Case("values out of range", lambda draw: (draw.normal(5, 33), draw.scale(33, absmax=0.5)))
    yield Case("half precision", lambda draw: (draw.normal(5, 33).half(), draw.scale(1)))
    yield Case("middles between two codes", _middles)


def _per_token_cases() -> Iterator[Case]:
    def with_zeros(draw: Draw) -> Args:
        return draw.normal(4, 33) * torch.tensor([[1.0], [0.0], [1e-30], [1e30]]), 8

    yield Case("int8", lambda draw: (draw.normal(2, 3, 33), 8))
    yield Case("int4", lambda draw: (draw.normal(5, 7), 4))
    yield Case("int2", lambda draw: (draw.normal(5, 7), 2))
    yield Case("half precision", lambda draw: (draw.normal(5, 33).half(), 8))
    yield Case("a token of zeros, tiny and large ones", with_zeros)


def _embedding_cases() -> Iterator[Case]:
    yield Case("a scale a row", lambda d: (d.ids(2, 5, below=7), d.codes(7, 3), d.scale(7)))
    yield Case("one scale", lambda d: (d.ids(4, below=7), d.codes(7, 3), d.scale(1)))
    yield Case("int32 ids", lambda d: (d.ids(4, below=7).int(), d.codes(7, 3), d.scale(7)))
    yield Case("no ids", lambda d: (d.ids(2, 0, below=7), d.codes(7, 3), d.scale(7)))


def _embedding4_cases() -> Iterator[Case]:
    def make(*ids: int, rows: int = 7, width: int = 12, groups: int = 3) -> Callable[[Draw], Args]:
        return lambda d: (
            d.ids(*ids, below=rows), d.ids(rows, width // 2, below=256).to(torch.uint8), d.scale(rows, groups),
        )  # fmt: skip

    yield Case("three groups", make(2, 5))
    yield Case("one group", make(4, groups=1))
    yield Case("groups of odd size", make(4, width=10, groups=2))
    yield Case("int32 ids", lambda d: (make(4)(d)[0].int(), *make(4)(d)[1:]))
    yield Case("no ids", make(2, 0))


def _compare_static(args: Args, got: Tensor) -> None:
    assert_equal_codes(got, naive.quantize_static(*args))


def _compare_per_token(args: Args, got: tuple[Tensor, Tensor]) -> None:
    found, scale = naive.quantize_per_token(*args)
    assert_equal_codes(got[1].view(torch.int32), scale.view(torch.int32), "scale (bits)")
    assert_equal_codes(got[0], found)


def _compare_embedding(args: Args, got: Tensor) -> None:
    assert_equal_codes(got.view(torch.int32), naive.int8_embedding(*args).view(torch.int32), "row (bits)")


def _compare_embedding4(args: Args, got: Tensor) -> None:
    assert_equal_codes(got.view(torch.int32), naive.int4_embedding(*args).view(torch.int32), "row (bits)")


_ALL = (
    Suite(int8_linear, tuple(_linear_cases()), _compare_linear, scale_out=True),
    Suite(int4_linear, tuple(_int4_cases()), _compare_int4, scale_out=True),
    Suite(mixed_linear, tuple(_mixed_cases()), _compare_mixed, scale_out=True),
    Suite(outlier_linear, tuple(_outlier_cases()), _compare_outlier, scale_out=True),
    Suite(causal_conv1d, tuple(_conv_cases()), _compare_conv, scale_out=True),
    Suite(ssd, tuple(_ssd_cases()), _compare_scan(naive.ssd)),
    Suite(selective_scan, tuple(_selective_scan_cases()), _compare_scan(naive.selective_scan)),
    Suite(rms_norm, tuple(_rms_norm_cases()), _compare_norm(naive.rms_norm), scale_out=True),
    Suite(gated_rms_norm, tuple(_gated_norm_cases()), _compare_norm(naive.gated_rms_norm), scale_out=True),
    Suite(gate, tuple(_gate_cases()), _compare_gate, scale_out=True),
    Suite(hadamard, tuple(_hadamard_cases()), _compare_hadamard),
    Suite(quantize_static, tuple(_static_cases()), _compare_static),
    Suite(quantize_per_token, tuple(_per_token_cases()), _compare_per_token),
    Suite(int8_embedding, tuple(_embedding_cases()), _compare_embedding),
    Suite(int4_embedding, tuple(_embedding4_cases()), _compare_embedding4),
)
SUITES = {suite.op.name: suite for suite in _ALL}
