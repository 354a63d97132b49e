"""`Comparison`: finished rows, the tests between them, and the JSON made from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ssmquant.eval.grouping import Pair, letters, pairwise_tests
from ssmquant.eval.results import Evaluation, Paired
from ssmquant.report.row import Row
from ssmquant.report.timing import Workload

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """Recipes on one model.

    Attributes:
        model: its name.
        environment: what `ssmquant.eval.environment.environment` returns.
        calibration: what every recipe was calibrated on, see `ssmquant.report.compare.Calibration`.
        workload: what was timed.
        rows: one a recipe, in the order asked for.
    """

    model: str
    environment: Mapping[str, Any]
    calibration: Mapping[str, Any]
    workload: Workload
    rows: tuple[Row, ...]

    @cached_property
    def ranked(self) -> tuple[Row, ...]:
        """The rows, closest to the float model first."""
        return tuple(sorted(self.rows, key=lambda row: row.kl.value))

    @cached_property
    def paired(self) -> tuple[Paired, ...]:
        """Every pair of recipes on every domain: p not corrected for the number of comparisons."""
        return Evaluation(self.model, tuple(row.scores for row in self.rows)).paired

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair of recipes on the mean over domains, the better one first: p corrected for their number."""
        return pairwise_tests({row.recipe: row.kl_documents for row in self.ranked})

    @cached_property
    def letters(self) -> dict[str, str]:
        """Letters of each recipe: two recipes share one if and only if no difference of them is shown."""
        different = [(pair.a, pair.b) for pair in self.pairs if pair.differ]
        found = letters([row.recipe for row in self.ranked], different)
        return {recipe: "".join(marks) for recipe, marks in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "environment": dict(self.environment),
            "model": self.model,
            "calibration": dict(self.calibration),
            "workload": self.workload._asdict(),
            "rows": [row.to_json() | {"letters": self.letters[row.recipe]} for row in self.rows],
            "paired": [pair.to_json() for pair in self.paired],
            "paired_mean": [
                {
                    "a": pair.a,
                    "b": pair.b,
                    "kl_diff": pair.test.diff.value,
                    "ci": pair.test.diff.bounds(),
                    "p": pair.test.p,
                    "p_holm": pair.p_holm,
                    "differ": pair.differ,
                }
                for pair in self.pairs
            ],
        }
