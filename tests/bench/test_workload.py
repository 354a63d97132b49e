"""One repetition on an engine that moves the clock on itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssmquant.bench import workload as module
from ssmquant.bench.workload import Times, Workload, run_workload
from ssmquant.errors import InputError


class Engine:
    """Takes 3 s a prefill and 1 s a step, of which the device is done only half a second after a synchronisation."""

    def __init__(self) -> None:
        self.now = 0.0
        self.prompts: list[list[int]] = []
        self.tokens: list[list[int]] = []

    def prefill(self, prompts: list[list[int]]) -> tuple[torch.Tensor, int]:
        self.now += 3
        self.prompts = prompts
        return torch.zeros(len(prompts), 5), 0

    def step(self, tokens: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        assert state == len(self.tokens)  # each step goes on from the state of the one before
        self.now += 1
        self.tokens.append(tokens.tolist())
        return torch.zeros(len(tokens), 5), state + 1

    def synchronize(self) -> None:
        self.now += 0.5


def test_prefill_and_steps_are_timed_apart_until_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Engine()
    monkeypatch.setattr(module, "perf_counter", lambda: engine.now)
    times = run_workload(engine, Workload(7, 4, batch=2, repeats=1), 50, engine.synchronize)
    assert times == Times(prefill=3.5, decode=4.5)
    assert [len(prompt) for prompt in engine.prompts] == [7, 7]
    assert [len(tokens) for tokens in engine.tokens] == [2] * 4


def test_tokens_are_random_in_the_vocabulary_and_the_same_each_time() -> None:
    first: Any = Engine()
    second: Any = Engine()
    for engine in (first, second):
        run_workload(engine, Workload(100, 3, batch=3, repeats=1), 11, engine.synchronize)
    assert first.prompts == second.prompts
    assert first.tokens == second.tokens
    assert {token for prompt in first.prompts for token in prompt} == set(range(11))


@pytest.mark.parametrize("name", ["prompt_len", "gen_len", "batch", "repeats"])
def test_a_workload_that_times_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0; it is at least 1"):
        Workload(**{name: 0})
