"""Shared statistics: the same bits from shards and from the cache, a cost that does not depend on who came first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tests.tiny_models import float_model

from ssmquant.calibrate import Progress, calibrate
from ssmquant.families import Shell
from ssmquant.report import sharing as module
from ssmquant.report.executors import Item, Result, Serial, Task
from ssmquant.report.sharing import SharedStatistics
from ssmquant.statistics import Statistics

NEEDS = {
    "layers.0.x": ("absmax", "histogram"),
    "layers.1.hidden": ("hessian",),
    "layers.1.state": ("absmax",),
}
WINDOWS = torch.randint(0, 60, (5, 24), generator=torch.Generator().manual_seed(0))


class Sharding(Serial):
    """Runs the shards here, the last one first."""

    inner = 3

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def map(
        self, task: Task[Item, Result], items: Sequence[Item], progress: Progress | None
    ) -> Iterator[tuple[Item, Result]]:
        for item in reversed(items):
            assert isinstance(item, torch.Tensor)
            self.sizes.append(len(item))
            yield item, task(item, progress)


@pytest.fixture(scope="module")
def shell() -> Shell:
    return float_model("mamba").shell


def same(a: Statistics, b: Statistics) -> bool:
    first, second = a.to_tensors(), b.to_tensors()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_shards_give_the_same_bits(shell: Shell, tmp_path: Path) -> None:
    executor = Sharding()
    found = SharedStatistics(executor, tmp_path)(shell, WINDOWS, NEEDS)
    assert executor.sizes == [1, 2, 2]
    assert same(found, calibrate(shell, WINDOWS, NEEDS))
    assert found.cost(NEEDS) > 0


def test_who_comes_second_pays_the_same(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    runs: list[object] = []

    def gathered(shell: Shell, windows: torch.Tensor, needs: object, progress: object) -> Statistics:
        """Twenty seconds for a run, and three for each observer."""
        runs.append(needs)
        statistics = calibrate(shell, windows, needs)  # type: ignore[arg-type]
        seconds = {key: 3.0 if "|" in key else 20.0 for key in statistics.seconds}
        now[0] += sum(seconds.values())
        statistics.seconds.update(seconds)
        return statistics

    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "calibrate", gathered)
    few = {"layers.0.x": ("absmax",)}
    costs = []
    for needs in (few, NEEDS, few, NEEDS):
        statistics, start = SharedStatistics(Serial(), tmp_path), now[0]
        statistics(shell, WINDOWS, needs)
        costs.append(now[0] - start + statistics.excess)
    assert costs == pytest.approx([23.0, 32.0, 23.0, 32.0])
    assert len(runs) == 2  # the second time, only what the first had not gathered
