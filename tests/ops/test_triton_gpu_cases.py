"""On a GPU: every case of the ops, small and odd sizes, compiled; `scripts/sanitize_gpu.sh` watches their memory.

The interpreter sees each of these kernels too, but none of what a compiler makes of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .cases import SUITES, Case, Suite

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: kernels are compiled for it"
)

CASES = [
    pytest.param(suite, case, id=f"{name}: {case.name}")
    for name, suite in SUITES.items()
    for case in suite.cases
]


def on_cpu(results: Any) -> Any:
    return results.cpu() if isinstance(results, Tensor) else tuple(result.cpu() for result in results)


@pytest.mark.parametrize(("suite", "case"), CASES)
def test_case(suite: Suite, case: Case) -> None:
    args = case.args("cuda")
    backend, reasons = suite.op.chosen(*args)
    if backend == "reference":
        pytest.skip("; ".join(reasons) or f"{suite.op.name} has no kernel for GPUs")
    suite.compare(case.args(), on_cpu(suite.op(*args)))
