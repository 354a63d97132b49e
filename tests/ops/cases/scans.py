"""SSD and selective scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ssmquant.ops.selective_scan import selective_scan
from ssmquant.ops.ssd import ssd
from ssmquant.tolerance import assert_float32, assert_half, assert_requantised

from .. import naive
from .base import Args, Case, Draw, Suite


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


def assert_state(got: Tensor, want: Tensor, dtype: torch.dtype, tokens: int) -> None:
    """Raise AssertionError unless a state of a dtype is within its tolerance class after some tokens."""
    match dtype:
        case torch.int8:
            assert_requantised(got, want, "state")
        case torch.float16:
            assert_half(got, want, "state")
        case _:
            assert_float32(got, want, tokens, "state")


def _compare_scan(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Args, Any], None]:
    def compare(args: Args, got: tuple[Tensor, Tensor]) -> None:
        y, state = op(*args)
        length, d_state = args[0].shape[1], args[5].shape[-1]
        assert_float32(got[0], y, length * d_state, "y")
        assert_state(got[1], state, args[-3].dtype, length)

    return compare


SUITES = (
    Suite(ssd, tuple(_ssd_cases()), _compare_scan(naive.ssd)),
    Suite(selective_scan, tuple(_selective_scan_cases()), _compare_scan(naive.selective_scan)),
)
