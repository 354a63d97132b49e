"""Norms, gate, Hadamard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ssmquant.ops.gate import gate
from ssmquant.ops.gated_rms_norm import gated_rms_norm
from ssmquant.ops.hadamard import hadamard
from ssmquant.ops.rms_norm import rms_norm
from ssmquant.tolerance import assert_float32

from .. import naive
from .base import Args, Case, Draw, Suite, assert_outputs


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
    return lambda args, got: assert_outputs(got, op(*args), args[-1], args[0].shape[-1])


def _compare_gate(args: Args, got: Tensor) -> None:
    assert_outputs(got, naive.gate(*args), args[-1], args[0].shape[-1] if args[3] else 1)


def _compare_hadamard(args: Args, got: Tensor) -> None:
    assert_float32(got, naive.hadamard(*args), args[0].shape[-1])


SUITES = (
    Suite(rms_norm, tuple(_rms_norm_cases()), _compare_norm(naive.rms_norm), scale_out=True),
    Suite(gated_rms_norm, tuple(_gated_norm_cases()), _compare_norm(naive.gated_rms_norm), scale_out=True),
    Suite(gate, tuple(_gate_cases()), _compare_gate, scale_out=True),
    Suite(hadamard, tuple(_hadamard_cases()), _compare_hadamard),
)
