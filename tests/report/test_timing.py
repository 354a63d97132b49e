"""Ratios of a clock that the engines themselves move on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssmquant.report import timing
from ssmquant.report.timing import Workload, relative_times


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Takes so many seconds for a prefill and a step; while `slow`, everything takes longer for everyone."""

    def __init__(self, clock: Clock, prefill: float, step: float, log: list[str], name: str) -> None:
        self.clock, self.seconds, self.log, self.name = clock, (prefill, step), log, name
        self.prompts: list[int] = []
        self.steps = 0

    def prefill(self, prompts: list[list[int]]) -> tuple[torch.Tensor, object]:
        self.log.append(self.name)
        self.prompts.append(len(prompts[0]))
        # Every second repetition the whole machine is ten times slower: a ratio must not notice.
        self.factor = 10 if len(self.prompts) % 2 else 1
        self.clock.now += self.factor * self.seconds[0]
        return torch.zeros(1, 5), object()

    def step(self, tokens: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        self.steps += 1
        self.clock.now += self.factor * self.seconds[1]
        return torch.zeros(1, 5), state


def test_ratios_are_taken_in_turns_within_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), list[str]()
    monkeypatch.setattr(timing, "perf_counter", clock)
    candidate: Any = FakeEngine(clock, 3.0, 1.0, log, "candidate")
    reference: Any = FakeEngine(clock, 2.0, 4.0, log, "reference")
    prefill, decode = relative_times(candidate, reference, Workload(prompt=7, steps=3, repetitions=4))
    assert prefill == pytest.approx((1.5, 1.5, 1.5))
    assert decode == pytest.approx((0.25, 0.25, 0.25))
    assert candidate.prompts == [7] * 5
    assert candidate.steps == reference.steps == 15
    assert log == ["reference", "candidate", "candidate", "reference"] * 2 + ["reference", "candidate"]


def test_the_first_run_does_not_count_and_percentiles_are_of_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ratios = iter([1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    seconds: dict[str, float] = {}

    def run(engine: Any, workload: Workload) -> tuple[float, float]:
        if not seconds:
            seconds.update(reference=1.0, candidate=next(ratios))
        return (seconds.pop(engine), 1.0)

    monkeypatch.setattr(timing, "run", run)
    candidate: Any = "candidate"
    reference: Any = "reference"
    prefill, decode = relative_times(candidate, reference, Workload(1, 1, 6))
    assert prefill == pytest.approx((2.0, 3.5, 5.0))
    assert decode == (1, 1, 1)
