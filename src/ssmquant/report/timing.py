"""Time of a model relative to another, on the same machine, in the same minute.

Both run in turns, and each repetition gives one ratio, so that what slows the machine down for a while slows both.
Each runs in the engine that a user gets for it, so a ratio is what the recipe gains or costs here and now: recipes
that only the stages can run show what they take without kernels of their own.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from ssmquant.runtime.choice import AnyEngine

__all__ = ["WORKLOAD", "Relative", "Workload", "relative_times", "run"]


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


def relative_times(
    candidate: AnyEngine, reference: AnyEngine, workload: Workload
) -> tuple[Relative, Relative]:
    """Return the times of the prefill and of the steps, each relative to the reference's.

    Args:
        candidate: the engine of the model in question.
        reference: that of the model that it is compared with.
        workload: what is timed.
    """
    ratios = []
    for repetition in range(workload.repetitions + 1):
        # Who goes first alternates: a clock that falls under load would favour the same one each time.
        pair = (reference, candidate) if repetition % 2 == 0 else (candidate, reference)
        seconds = {id(engine): run(engine, workload) for engine in pair}
        ratios.append([a / b for a, b in zip(seconds[id(candidate)], seconds[id(reference)], strict=True)])
    prefill, decode = np.percentile(ratios[1:], [20, 50, 80], axis=0).T.tolist()
    return Relative(*prefill), Relative(*decode)


def run(engine: AnyEngine, workload: Workload) -> tuple[float, float]:
    """Run a workload once; return the seconds of the prefill and of all steps."""
    start = perf_counter()
    logits, state = engine.prefill([[0] * workload.prompt])
    read = perf_counter()
    for _ in range(workload.steps):
        logits, state = engine.step(torch.argmax(logits, dim=-1), state)
    return read - start, perf_counter() - read
