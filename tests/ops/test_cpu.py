"""The C++ kernels against the naive implementations, on every case of every op that has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
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
        "causal_conv1d", "gate", "gated_rms_norm", "hadamard", "int4_linear", "int8_embedding", "int8_linear",
        "quantize_per_token", "quantize_static", "rms_norm", "selective_scan", "ssd",
    }  # fmt: skip
    assert found <= all_ops().keys()


@pytest.mark.parametrize("level", ["generic", "avx2", "avxvnni", "avx512vnni", "dotprod"])
def test_every_level(level: str) -> None:
    """The same tests and those of the scans, in a process that is held to one instruction set."""
    environment = {**os.environ, "SSMQUANT_ISA": level}
    probe = [sys.executable, "-c", "from ssmquant import _native; _native.isa()"]
    answer = subprocess.run(probe, env=environment, capture_output=True, text=True).stderr
    if "is not an instruction set" in answer:
        pytest.skip(f"this processor or build has no {level}")
    tests = [str(Path(__file__)), str(Path(__file__).with_name("test_cpu_scans.py"))]
    names = "not every_level and not threads and not linear and not embedding"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", names, *tests]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
