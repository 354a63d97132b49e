"""Contestants and a probe whose every number is chosen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ssmquant.bench.contestant import Facts
from ssmquant.bench.probe import Probe
from ssmquant.bench.workload import Times, Workload


class FakeContestant:
    """Takes the given seconds a repetition, and writes down what is asked of it."""

    device, threads = "cpu", 1

    def __init__(self, log: list[str], facts: Facts, times: list[Times]) -> None:
        self.log, self.facts, self.times = log, facts, times
        self.workloads: list[Workload] = []

    def start(self) -> Facts:
        self.log.append(f"start {self.facts.name}")
        return self.facts

    def run(self, workload: Workload) -> Times:
        self.log.append(f"run {self.facts.name}")
        self.workloads.append(workload)
        return self.times[len(self.workloads) - 1]

    def peak_bytes(self) -> int:
        return 1000

    def close(self) -> None:
        self.log.append(f"close {self.facts.name}")


class FakeProbe(Probe):
    """Reads at 1, 2, 3 … GB/s; has a peak of 100 Gop/s, or none."""

    how, isa = "fake", "fakeisa"

    def __init__(self, log: list[str], peak: float | None = 100.0) -> None:
        super().__init__(threads=1)
        self.log, self.peak, self.counts = log, peak, list[int]()

    def _read(self, count: int) -> float:
        self.log.append("probe")
        self.counts.append(count)
        return len(self.counts) * 1e9

    def int8_gops(self) -> float | None:
        return self.peak


MakeContestant = Callable[..., FakeContestant]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def make(log: list[str]) -> MakeContestant:
    """Makes a contestant of a name, with the seconds of its warm-up and of each repetition."""

    def contestant(name: str, *times: tuple[float, float], **facts: object) -> FakeContestant:
        known = Facts(name, "recipe", "engine", 10**6, 10**9)._replace(**facts)
        return FakeContestant(log, known, [Times(*pair) for pair in times])

    return contestant


@pytest.fixture
def make_probe(log: list[str]) -> Callable[..., FakeProbe]:
    return lambda **options: FakeProbe(log, **options)
