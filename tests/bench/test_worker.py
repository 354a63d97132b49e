"""A model in a process of its own: its answers, its errors, its end."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from ssmquant.bench.memory import peak_bytes, resident_bytes
from ssmquant.bench.subjects import OurModel, SubjectSpec, TransformersModel
from ssmquant.bench.worker import Worker
from ssmquant.bench.workload import Workload
from ssmquant.data import builtin_model
from ssmquant.errors import ModelError, SsmquantError
from ssmquant.families import model_config
from ssmquant.files import read_config
from ssmquant.loading import load

BUILTIN = str(builtin_model())


def test_a_worker_loads_runs_and_ends() -> None:
    worker = Worker(OurModel(BUILTIN, None, "cpu"), threads=1)
    try:
        facts = worker.start()
        times = worker.run(Workload(4, 2))
        peak = worker.peak_bytes()
        # Killed from outside, as the system does when memory runs out.
        assert worker._process.pid is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(SsmquantError, match="ended with status -9"):
            worker.run(Workload(4, 2))
    finally:
        worker.close()
    model = load(BUILTIN)
    assert facts.parameters == sum(weight.dequantize().numel() for _, weight in model.shell.weights())
    assert facts.weight_bytes == sum(t.nbytes for t in model.module.state_dict().values())
    assert facts.read_bytes is not None  # the checkpoint is in half precision, and so the engine has it
    assert 0.5 < facts.read_bytes / facts.weight_bytes < 0.51
    assert facts.recipe == "float32"
    assert facts.token_operations == facts.head_operations == 0
    assert times.prefill > 0
    assert times.decode > 0
    assert facts.base_bytes is not None
    assert peak > facts.base_bytes + facts.weight_bytes


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (OurModel("no/such/folder/anywhere", None, "cpu"), ModelError, "no/such/folder/anywhere"),
        (TransformersModel(None, "float32", "cpu"), SsmquantError, "in the process of TransformersModel"),
    ],
)
def test_what_goes_wrong_there_is_raised_here(
    monkeypatch: pytest.MonkeyPatch, spec: SubjectSpec, kind: type[Exception], message: str
) -> None:
    """What the process does, done in this one."""
    monkeypatch.setenv("SSMQUANT_THREADS", "1")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    worker = Worker(spec, threads=1)
    monkeypatch.setattr(worker, "_process", InPlace(worker._process))
    try:
        with pytest.raises(kind, match=message):
            worker.start()
    finally:
        worker.close()


class InPlace:
    """Does the work of a process when it is started."""

    pid = None

    def __init__(self, process: Any) -> None:
        self.process = process

    def start(self) -> None:
        self.process._target(*self.process._args)


def test_transformers_engine_goes_on_from_its_state() -> None:
    config = model_config(read_config(builtin_model()), "")
    subject = TransformersModel(config, "float32", "cpu").load()
    whole, _ = subject.engine.prefill([[5, 6, 7, 8]])
    _, state = subject.engine.prefill([[5, 6, 7]])
    stepped, _ = subject.engine.step(torch.tensor([8]), state)
    torch.testing.assert_close(whole, stepped)
    assert whole.shape == (1, config.vocab_size)
    assert subject.facts.weight_bytes == 4 * sum(p.numel() for p in load(BUILTIN).module.parameters())


def test_memory_counts_what_was_touched_and_remembers_the_peak() -> None:
    before = resident_bytes()
    block = bytearray(b"x" * 50_000_000)
    grown = resident_bytes() - before
    del block
    assert 45e6 < grown < 80e6
    assert peak_bytes() >= before + grown
    assert peak_bytes() >= resident_bytes()
    assert peak_bytes(2**22 + 1) == 0  # no such process
