"""Every op against its naive implementation, and what all ops have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ssmquant.ops
from ssmquant import numerics
from ssmquant.ops import all_ops

from .cases import SUITES, Args, Case, Suite

EVERY = [
    pytest.param(suite, case, id=f"{name}: {case.name}")
    for name, suite in SUITES.items()
    for case in suite.cases
]
WITH_SCALE_OUT = [p for p in EVERY if p.values[0].scale_out]


def tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def test_every_op_has_a_suite() -> None:
    folder = Path(ssmquant.ops.__file__).parent
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert SUITES.keys() == all_ops().keys()
    assert folders - {"quantize"} <= SUITES.keys()


@pytest.mark.parametrize(("suite", "case"), EVERY)
def test_result(suite: Suite, case: Case) -> None:
    args = case.args()
    suite.compare(args, suite.op(*args))


@pytest.mark.parametrize(("suite", "case"), WITH_SCALE_OUT)
def test_codes_out_are_the_quantised_floats(suite: Suite, case: Case) -> None:
    """`op(…, scale_out)` is `quantize(op(…, None), scale_out)`, bit for bit."""
    *args, scale_out = case.args()
    floats, *rest = tensors(suite.op(*args, None))
    channels = floats.shape[-1]
    for scale in (scale_out, torch.tensor([0.037]), torch.linspace(0.01, 0.1, channels)):
        if scale is not None:
            codes, *rest_too = tensors(suite.op(*args, scale))
            assert codes.dtype == torch.int8
            assert torch.equal(codes, numerics.quantize(floats, scale))
            assert all(torch.equal(a, b) for a, b in zip(rest, rest_too, strict=True))


@pytest.mark.parametrize(("suite", "case"), EVERY)
def test_arguments_are_not_written_to_and_not_handed_back(suite: Suite, case: Case) -> None:
    args, again = case.args(), case.args()
    results = tensors(suite.op(*args))
    for result in results:
        result.zero_()
    assert all(torch.equal(a, b) for a, b in zip(args, again, strict=True) if isinstance(a, Tensor))


@pytest.mark.parametrize(("suite", "case"), EVERY)
def test_torch_library_contract(suite: Suite, case: Case) -> None:
    overload = getattr(torch.ops.ssmquant, suite.op.name).default
    for args in (case.args(), transposed(case.args())):
        opcheck(overload, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def transposed(args: Args) -> Args:
    """Return the same arguments laid out in memory with the dimensions of each tensor in reverse."""
    return tuple(
        a.permute(*reversed(range(a.dim()))).contiguous().permute(*reversed(range(a.dim())))
        if isinstance(a, Tensor)
        else a
        for a in args
    )


@pytest.mark.parametrize(("suite", "case"), EVERY)
def test_layout_in_memory_does_not_matter(suite: Suite, case: Case) -> None:
    args = case.args()
    suite.compare(args, suite.op(*transposed(args)))
