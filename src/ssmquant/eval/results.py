"""What an evaluation found: arrays with an entry a document; intervals, tests and JSON made from them.

Per-document arrays are kept, so that anything paired can be computed later without running a model again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ssmquant.eval.statistics import Array, Interval, PairedTest, mean_interval, paired_test

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Divergence", "DomainScores", "Evaluation", "ModelScores", "Paired"]


@dataclass(frozen=True, eq=False)  # == of arrays is not a truth value
class Divergence:
    """A candidate against the reference; float64 [documents], means over the predicted tokens of each."""

    kl: Array
    """KL(reference ‖ candidate), nats a token."""
    top1: Array
    """Share of positions with the same most likely token."""
    nll_reference: Array
    """Negative log-likelihood under the reference, nats a token."""


@dataclass(frozen=True, eq=False)  # == of arrays is not a truth value
class DomainScores:
    """One model on one domain. All documents of a domain have as many tokens, so documents weigh the same."""

    tokens: int
    """Predicted tokens of all documents together."""
    nll: Array
    """Negative log-likelihood, nats a token; float64 [documents], means over the tokens of each."""
    divergence: Divergence | None
    """None when there was no reference."""

    @cached_property
    def ppl(self) -> Interval:
        """Perplexity a token: exp of the mean negative log-likelihood."""
        return mean_interval(self.nll).exp()

    @cached_property
    def kl(self) -> Interval | None:
        """Mean KL divergence from the reference, nats a token."""
        return None if self.divergence is None else mean_interval(self.divergence.kl)

    @cached_property
    def top1(self) -> Interval | None:
        """Share of positions at which the reference has the same most likely token."""
        return None if self.divergence is None else mean_interval(self.divergence.top1)

    @cached_property
    def ppl_reference(self) -> Interval | None:
        """Perplexity of the reference."""
        return None if self.divergence is None else mean_interval(self.divergence.nll_reference).exp()

    @cached_property
    def ppl_ratio(self) -> Interval | None:
        """Perplexity over that of the reference: exp of the mean paired difference."""
        return (
            None if self.divergence is None else mean_interval(self.nll - self.divergence.nll_reference).exp()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry of one domain; measures against a reference are None when there was none."""
        entry = {
            "tokens": self.tokens,
            "kl": _value(self.kl),
            "kl_ci": _bounds(self.kl),
            "top1": _value(self.top1),
            "ppl": self.ppl.value,
            "ppl_ref": _value(self.ppl_reference),
            "ppl_ratio": _value(self.ppl_ratio),
            "ppl_ratio_ci": _bounds(self.ppl_ratio),
        }
        # Beside a reference the interval that counts is that of the ratio; alone, the perplexity has its own.
        return entry if self.divergence else entry | {"ppl_ci": self.ppl.bounds()}


@dataclass(frozen=True)
class ModelScores:
    """One model on all domains."""

    name: str
    domains: Mapping[str, DomainScores]

    def to_json(self) -> dict[str, Any]:
        """Return {domain: entry}, the "domains" of one model."""
        return {domain: scores.to_json() for domain, scores in self.domains.items()}


@dataclass(frozen=True)
class Paired:
    """Two candidates on one domain: the difference of their divergences from the reference."""

    a: str
    b: str
    domain: str
    kl: PairedTest
    """Of KL(reference ‖ a) - KL(reference ‖ b), nats a token: negative when a is closer to the reference."""

    def to_json(self) -> dict[str, Any]:
        """Return the entry of one pair."""
        return {
            "a": self.a,
            "b": self.b,
            "domain": self.domain,
            "kl_diff": self.kl.diff.value,
            "ci": self.kl.diff.bounds(),
            "p": self.kl.p,
        }


@dataclass(frozen=True)
class Evaluation:
    """Models on the same domains of text."""

    against: str | None
    """Name of the reference."""
    models: tuple[ModelScores, ...]

    @cached_property
    def paired(self) -> tuple[Paired, ...]:
        """Every pair of candidates on every domain; empty without a reference, to which the test refers."""
        return tuple(
            Paired(a.name, b.name, domain, paired_test(a_scores.divergence.kl, b_scores.divergence.kl))
            for a, b in combinations(self.models, 2)
            for domain, a_scores in a.domains.items()
            if a_scores.divergence and (b_scores := b.domains[domain]).divergence
        )

    def to_json(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain data: flat for one model, "models" and "paired" for several.

        Args:
            environment: what `ssmquant.eval.environment.environment` returns.
        """
        entries = [
            {"model": model.name, "against": self.against, "domains": model.to_json()}
            for model in self.models
        ]
        if len(entries) == 1:
            return {**entries[0], "environment": dict(environment)}
        return {
            "models": entries,
            "environment": dict(environment),
            "paired": [pair.to_json() for pair in self.paired],
        }

    def table(self) -> Table:
        """Return the table for people, a row a model and domain."""
        from ssmquant.eval.tables import scores_table

        return scores_table(self)

    def paired_table(self) -> Table | None:
        """Return the table of the paired tests, or None when there is no pair to test."""
        from ssmquant.eval.tables import paired_table

        return paired_table(self) if self.paired else None


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else interval.bounds()
