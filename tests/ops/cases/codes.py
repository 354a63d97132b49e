"""Quantisation and embeddings: no sum, so nothing is left to the implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssmquant.ops.int4_embedding import int4_embedding
from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.quantize import quantize_per_token, quantize_static
from ssmquant.tolerance import assert_equal_codes

from .. import naive
from .base import Args, Case, Draw, Suite


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


SUITES = (
    Suite(quantize_static, tuple(_static_cases()), _compare_static),
    Suite(quantize_per_token, tuple(_per_token_cases()), _compare_per_token),
    Suite(int8_embedding, tuple(_embedding_cases()), _compare_embedding),
    Suite(int4_embedding, tuple(_embedding4_cases()), _compare_embedding4),
)
