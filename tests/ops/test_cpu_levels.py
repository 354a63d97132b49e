"""The tests of the C++ kernels once more on every instruction set that was built and that this processor has.

Those of the kernels that no op has, the float products, are the engine's on models of floats.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ssmquant._native", reason="the compiled extension is not built")

FILES = (
    "test_cpu.py",
    "test_cpu_linear.py",
    "test_cpu_scans.py",
    "../runtime/test_native.py::test_the_engine_computes_the_floats_of_the_reference",
)


@pytest.mark.parametrize("level", ["generic", "avx2", "avxvnni", "avx512vnni", "dotprod"])
def test_every_level(level: str) -> None:
    """In a process that is held to one instruction set."""
    environment = {**os.environ, "SSMQUANT_ISA": level}
    probe = [sys.executable, "-c", "from ssmquant import _native; _native.isa()"]
    answer = subprocess.run(probe, env=environment, capture_output=True, text=True).stderr
    if "is not an instruction set" in answer:
        pytest.skip(f"this processor or build has no {level}")
    tests = [str(Path(__file__).parent / name) for name in FILES]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "not threads",
        *tests,
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
