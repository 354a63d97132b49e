"""The C++ kernels against the naive implementations, on every case of every op that has one."""

from __future__ import annotations

from typing import Any

import pytest

from ssmquant.ops import all_ops

from .cases import SUITES, Case, Suite

native = pytest.importorskip("ssmquant._native", reason="the compiled extension is not built")


SUPPORTED: list[Any] = [
    pytest.param(suite, case, id=f"{name}: {case.name}")
    for name, suite in SUITES.items()
    for case in suite.cases
    if suite.op.chosen(*case.args())[0] == "cpu"
]


@pytest.mark.parametrize(("suite", "case"), SUPPORTED)
def test_kernel(suite: Suite, case: Case) -> None:
    args = case.args()
    suite.compare(args, suite.op(*args))


def test_every_op_has_a_kernel() -> None:
    found = {param.values[0].op.name for param in SUPPORTED}
    assert found >= {
        "causal_conv1d", "gate", "gated_rms_norm", "hadamard", "int4_linear", "int4_progressive_linear",
        "int8_embedding", "int8_linear", "quantize_per_token", "quantize_static", "rms_norm", "selective_scan", "ssd",
    }  # fmt: skip
    assert found <= all_ops().keys()
