"""Time of a model relative to another in the same engine, on the same machine, in the same minute.

Both run in turns, and each repetition gives one ratio, so that what slows the machine down for a while slows both.
The engine is the reference engine, whose integer operations are exact and slow: a ratio says what a recipe costs
there, and nothing about the speed of kernels.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from ssmquant.runtime.engine import Engine

__all__ = ["WORKLOAD", "Relative", "Workload", "relative_times"]


class Workload(NamedTuple):
    """What is timed, for one sequence."""

    prompt: int
    """Tokens of the prefill."""
    steps: int
    """Decoded tokens."""
    repetitions: int
    """Ratios taken, after one run of each model that does not count."""


WORKLOAD = Workload(prompt=256, steps=32, repetitions=7)


class Relative(NamedTuple):
    """Time over that of the reference: percentiles over the repetitions."""

    p20: float
    p50: float
    p80: float


def relative_times(candidate: Engine, reference: Engine, workload: Workload) -> tuple[Relative, Relative]:
    """Return the times of the prefill and of the steps, each relative to the reference's.

    Args:
        candidate: the model in question.
        reference: the model that it is compared with, in the same engine.
        workload: what is timed.
    """
    ratios = []
    for repetition in range(workload.repetitions + 1):
        # Who goes first alternates: a clock that falls under load would favour the same one each time.
        pair = (reference, candidate) if repetition % 2 == 0 else (candidate, reference)
        seconds = {id(engine): _run(engine, workload) for engine in pair}
        ratios.append([a / b for a, b in zip(seconds[id(candidate)], seconds[id(reference)], strict=True)])
    prefill, decode = np.percentile(ratios[1:], [20, 50, 80], axis=0).T.tolist()
    return Relative(*prefill), Relative(*decode)


def _run(engine: Engine, workload: Workload) -> tuple[float, float]:
    """Return the seconds of the prefill and of all steps."""
    start = perf_counter()
    logits, state = engine.prefill([[0] * workload.prompt])
    read = perf_counter()
    for _ in range(workload.steps):
        logits, state = engine.step(torch.argmax(logits, dim=-1), state)
    return read - start, perf_counter() - read
