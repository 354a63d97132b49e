"""A comparison whose every number is chosen, and the folder of its report, made without a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ssmquant.eval.results import Divergence, DomainScores, ModelScores
from ssmquant.report.comparison import Comparison
from ssmquant.report.row import Row
from ssmquant.report.timing import Relative, Workload

DOCUMENTS = 12
MakeRow = Callable[..., Row]


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """Makes the row of a recipe whose divergence is about `kl`, with the noise of its documents."""

    def make(recipe: str, kl: float, *, megabytes: float = 8.0, prefill: float = 1.5, seed: int = 0) -> Row:
        noise = np.random.default_rng(seed).random(DOCUMENTS)
        domains = {
            name: DomainScores(
                tokens=63 * DOCUMENTS,
                nll=3 + kl + noise,
                divergence=Divergence(kl * (1 + 0.1 * noise), 1 - kl * noise, 3 + noise),
            )
            for name in ("en", "code")
        }
        return Row(
            recipe=recipe,
            bits_weight=8.25,
            bits_activation="mixed",
            bytes_at_rest=int(megabytes * 1e6),
            state_bytes=1000,
            float_share=0.25,
            calibration_s=1.5,
            peak_bytes=123_000_000,
            prefill=Relative(prefill - 0.1, prefill, prefill + 0.2),
            decode=Relative(1.0, 2.0, 3.0),
            by_stages="no engine",
            measured="2026-01-02T03:04:05Z",
            scores=ModelScores(recipe, domains),
        )

    return make


@pytest.fixture
def comparison(make_row: MakeRow) -> Comparison:
    """Three recipes: two of the same quality (another seed apart), and one far worse with a hostile name."""
    return Comparison(
        model="a model",
        environment={"cpu": "some cpu", "date": "2026-01-02T03:04:05Z"},
        calibration={"text": "builtin", "samples": 2, "seqlen": 64, "tokens_digest": "0"},
        workload=Workload(prompt=16, steps=4, repetitions=2),
        rows=(
            make_row("<b>$x_1|y.yaml", 0.5, megabytes=7),
            make_row("good", 0.01, seed=1, megabytes=9, prefill=1.7),
            make_row("same", 0.01, seed=2),
        ),
    )
