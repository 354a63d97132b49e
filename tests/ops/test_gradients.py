"""Gradients of the float references, on which sensitivity analysis rests, against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.autograd import gradcheck

from .cases import SUITES, Case

FLOAT = [
    ("float_linear", "float"),
    ("ssd", "two groups"),
    ("selective_scan", "float"),
    ("causal_conv1d", "float"),
    ("gated_rms_norm", "three groups, Hadamard"),
    ("rms_norm", "odd width"),
    ("gate", "float, Hadamard"),
    ("hadamard", "size 12"),
]


@pytest.mark.parametrize(("name", "case"), FLOAT)
def test_gradients_of_every_input(name: str, case: str) -> None:
    suite = SUITES[name]
    (found,) = (c for c in suite.cases if c.name == case)
    args = differentiable(found)
    inputs = tuple(a for a in args if isinstance(a, Tensor))

    def run(*tensors: Tensor) -> Any:
        left = iter(tensors)
        return suite.op(*(next(left) if isinstance(a, Tensor) else a for a in args))

    assert gradcheck(run, inputs)


def differentiable(case: Case) -> list[Any]:
    """Return the case's arguments in float64."""
    return [a.double().requires_grad_() if isinstance(a, Tensor) else a for a in case.args()]


def test_a_clamped_step_has_no_gradient() -> None:
    """dt_limit cuts the gradient as it cuts the value."""
    (case,) = (c for c in SUITES["ssd"].cases if c.name == "two groups")
    args = case.args()
    args[2].requires_grad_()
    y, _ = SUITES["ssd"].op(*args[:11], 0.3, 0.3, *args[13:])
    y.sum().backward()
    assert args[2].grad.abs().max() == 0
