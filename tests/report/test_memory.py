"""The peak of a process that does nothing but run the model."""

from __future__ import annotations

import pytest
import torch

import ssmquant
from ssmquant.data import builtin_model
from ssmquant.errors import SsmquantError
from ssmquant.model import Model
from ssmquant.report import memory
from ssmquant.report.memory import peak_bytes
from ssmquant.report.timing import Workload


@pytest.fixture(scope="module")
def quantised() -> Model:
    return ssmquant.quantize(ssmquant.load(builtin_model()), "w8a8-dynamic", samples=2, seqlen=32)


def test_it_holds_the_model_and_nothing_of_this_process(quantised: Model) -> None:
    ballast = torch.ones(512 << 20, dtype=torch.uint8)
    assert 5e6 < peak_bytes(quantised, Workload(16, 2, 1), threads=1) < ballast.nbytes


def test_a_process_that_breaks_is_told(quantised: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    with pytest.raises(SsmquantError, match=r"peak memory, the process that ran it ended with status 1"):
        peak_bytes(quantised, Workload(16, 2, 1), threads=1)
