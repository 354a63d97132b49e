"""All contestants in turns, the machine's limits beside each repetition."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from ssmquant.bench.contestant import Contestant, Facts
from ssmquant.bench.probe import Probe
from ssmquant.bench.results import Measurement, Row
from ssmquant.bench.workload import Times, Workload
from ssmquant.calibrate import Progress
from ssmquant.eval.environment import environment

__all__ = ["measure"]


def measure(
    contestants: Sequence[Contestant], probe: Probe, workload: Workload, progress: Progress | None = None
) -> Measurement:
    """Run a workload on every contestant, in turns.

    A machine that is shared or warms up changes its speed within minutes. So every repetition runs all contestants
    once, one after another and in alternating order, with the probes before them: ratios are of neighbours in time.

    Args:
        contestants: the model in question first; they are started here, and ended.
        probe: of their device.
        workload: what is timed.
        progress: called with (what, done, total).
    """
    with ExitStack() as stack:
        facts: list[Facts] = []
        for done, contestant in enumerate(contestants, start=1):
            stack.enter_context(closing(contestant))
            facts.append(contestant.start())
            contestant.run(workload.warm_up())
            if progress:
                progress("load", done, len(contestants))
        buffer = facts[0].step_bytes(workload.batch) or facts[0].weight_bytes
        times: list[list[Times]] = [[] for _ in contestants]
        reads: list[float] = []
        peaks: list[float | None] = []
        for repetition in range(workload.repeats):
            reads.append(probe.read_gbps(buffer))
            peaks.append(probe.int8_gops())
            order = range(len(contestants)) if repetition % 2 == 0 else reversed(range(len(contestants)))
            for index in order:
                times[index].append(contestants[index].run(workload))
            if progress:
                progress("measure", repetition + 1, workload.repeats)
        known = tuple(peak for peak in peaks if peak is not None)
        rows = tuple(
            Row(
                fact,
                contestant.device,
                contestant.threads,
                workload,
                tuple(its_times),
                tuple(reads),
                known if len(known) == len(peaks) else None,
                contestant.peak_bytes(),
            )
            for fact, contestant, its_times in zip(facts, contestants, times, strict=True)
        )
    return Measurement(_environment(probe), _summary(probe, reads, known, buffer), rows)


def _environment(probe: Probe) -> dict[str, Any]:
    """Return the machine and versions, with the threads that were measured and the instruction set of the kernels."""
    return environment() | {"threads": probe.threads, "isa": probe.isa}


def _summary(probe: Probe, reads: Sequence[float], peaks: Sequence[float], buffer: int) -> dict[str, Any]:
    return {
        "read_gbps": float(np.median(reads)),
        "int8_gops": float(np.median(peaks)) if peaks else None,
        "how": probe.how,
        "isa": probe.isa,
        "threads": probe.threads,
        "bytes": buffer,
    }
