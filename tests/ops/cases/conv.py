"""The causal convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.tolerance import assert_equal_codes

from .. import naive
from .base import Args, Case, Draw, Suite, assert_outputs


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
    assert_outputs(got[0], y, args[-1], args[2].shape[1])
    assert_equal_codes(got[1].contiguous().view(torch.int8), newest.contiguous().view(torch.int8), "state")


SUITES = (Suite(causal_conv1d, tuple(_conv_cases()), _compare_conv, scale_out=True),)
