"""Statistics that several recipes share: each is gathered once, and its cost counted for whoever uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from time import perf_counter

from torch import Tensor

from ssmquant.calibrate import Progress, calibrate, calibrate_cached
from ssmquant.families import Shell
from ssmquant.report.executors import Executor
from ssmquant.statistics import Needs, Statistics

__all__ = ["SharedStatistics"]


@dataclass(frozen=True)
class _Shard:
    """The task of calibrating on some of the windows."""

    shell: Shell
    needs: Mapping[str, tuple[str, ...]]

    def __call__(self, windows: Tensor, progress: Progress | None) -> Statistics:
        return calibrate(self.shell, windows, self.needs, progress)


class SharedStatistics:
    """Gathers statistics through a cache and, where tasks may start tasks, in shards.

    Statistics are exact monoids: from shards they are the same bit for bit.

    Args:
        executor: what runs the shards.
        cache: folder of the cache.

    Attributes:
        excess: seconds that the statistics handed out took to gather, beyond those spent here: less than nothing if
            this had to gather or wait for more than was wanted.
    """

    def __init__(self, executor: Executor, cache: Path) -> None:
        self._executor, self._cache = executor, cache
        self.excess = 0.0

    def __call__(
        self, shell: Shell, windows: Tensor, needs: Needs, progress: Progress | None = None
    ) -> Statistics:
        """Return the statistics, see `ssmquant.calibrate.calibrate_cached`."""
        start = perf_counter()
        statistics = calibrate_cached(shell, windows, needs, progress, cache=self._cache, gather=self._gather)
        self.excess += statistics.cost(needs) - (perf_counter() - start)
        return statistics

    def _gather(self, shell: Shell, windows: Tensor, needs: Needs, progress: Progress | None) -> Statistics:
        shards = min(self._executor.inner, len(windows))
        if shards <= 1:
            return calibrate(shell, windows, needs, progress)
        task, parts = _Shard(shell, dict(needs)), windows.tensor_split(shards)
        return reduce(Statistics.merge, (found for _, found in self._executor.map(task, parts, progress)))
