"""What cases are made of: drawn arguments, a case, and the suite of an op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ssmquant.ops.registry import Op
from ssmquant.tolerance import assert_float32, assert_requantised

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


def assert_outputs(got: Any, expected: Tensor, scale_out: Tensor | None, k: int) -> None:
    if scale_out is None:
        assert_float32(got, expected, k)
    else:
        assert_requantised(got, expected)
