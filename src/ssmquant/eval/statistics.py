"""Intervals over documents and paired tests between two models on the same documents.

The unit of resampling is the document: tokens of one text depend on each other, and an interval over tokens
would be too narrow. Every function is deterministic: the seed is an argument with a fixed default.

Sources: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval) and
chapter 15 (permutation tests); E. B. Wilson, JASA 22, 1927 (proportions); Q. McNemar, Psychometrika 12,
1947 (paired proportions).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # which imports its parts when they are first used

__all__ = [
    "NO_DIFFERENCE",
    "Array",
    "Interval",
    "PairedTest",
    "mcnemar",
    "mean_interval",
    "paired_test",
    "proportion_interval",
    "ratio_interval",
    "verdict",
]

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000
NO_DIFFERENCE = "no difference shown"

_DRAWS = 2**22  # document indices drawn at a time; bounds the memory for thousands of documents


class Interval(NamedTuple):
    """A value and its confidence interval."""

    value: float
    low: float
    high: float

    def exp(self) -> Interval:
        """Return that of the exponential; percentile intervals carry over to any monotone function."""
        return Interval(*(_exp(x) for x in self))

    def contains(self, value: float) -> bool:
        """Say whether the value lies inside, borders included."""
        return self.low <= value <= self.high

    def bounds(self) -> list[float] | None:
        """Return [low, high], or None when they are not known (fewer than two documents)."""
        return [self.low, self.high] if math.isfinite(self.low) and math.isfinite(self.high) else None


class PairedTest(NamedTuple):
    """The difference of two models on the same documents."""

    diff: Interval
    """Mean of a - b."""
    p: float
    """Two-sided p-value of no difference; not corrected for the number of comparisons made."""

    @property
    def shown(self) -> bool:
        """Whether the documents support a difference.

        The interval must exclude 0 and the test must agree: the percentile interval of a handful of documents
        is too narrow (with two documents it would exclude 0 half of the time), the exact test is not.
        """
        return not self.diff.contains(0.0) and self.p <= 1 - CONFIDENCE


def mean_interval(
    values: Array, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bootstrap the mean over documents: percentile interval.

    Two calls with as many documents and one seed draw the same documents, so intervals of several measures of
    one text belong together.

    Args:
        values: one number a document, [n].
        confidence: coverage of the interval, 0 … 1.
        resamples: bootstrap samples.
        seed: of the generator.

    Returns:
        The mean and its interval; (-inf, inf) for a single document, which says nothing about others.

    Raises:
        ValueError: no documents.
    """
    n = len(values)
    if n == 0:
        raise ValueError("mean_interval: at least one document expected, found none")
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    return _percentiles(mean, _resampled(values, resamples, seed), confidence)


def ratio_interval(
    a: Array, b: Array, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bootstrap the ratio of two means over the same documents: percentile interval.

    Each sample of documents is drawn for both, so what makes a document hard for both cancels.

    Args:
        a: one number a document, [n].
        b: the same documents, [n]; of a sign, so that no sample's mean is near 0.
        confidence: coverage of the interval, 0 … 1.
        resamples: bootstrap samples.
        seed: of the generator.

    Returns:
        mean(a) / mean(b) and its interval; (-inf, inf) for a single document.

    Raises:
        ValueError: the documents are not the same number.
    """
    _require_same(a, b)
    ratio = float(a.mean() / b.mean())
    if len(a) == 1:
        return Interval(ratio, -math.inf, math.inf)
    return _percentiles(ratio, _resampled(a, resamples, seed) / _resampled(b, resamples, seed), confidence)


def proportion_interval(hits: npt.NDArray[np.bool_], *, confidence: float = CONFIDENCE) -> Interval:
    """Return the share of hits among independent items and its Wilson interval.

    For items that are hit or missed this is closer than the bootstrap, which finds certainty, [0, 0], where
    nothing was hit.

    Args:
        hits: bool [n].
        confidence: coverage of the interval, 0 … 1.
    """
    test = scipy.stats.binomtest(int(hits.sum()), len(hits))
    low, high = test.proportion_ci(confidence, method="wilson")
    return Interval(float(test.statistic), float(low), float(high))


def paired_test(a: Array, b: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> PairedTest:
    """Test whether two models differ on the same documents: sign-flip permutation test of the mean.

    Exact when all 2^n sign patterns are at most `resamples`, else seeded Monte Carlo (whose p-value is never
    0).

    Args:
        a: one number a document for the first model, [n].
        b: the same documents for the second model, [n].
        resamples: sign patterns to try, and bootstrap samples of the interval.
        seed: of both generators.

    Raises:
        ValueError: the documents are not the same number.
    """
    diff = _difference(a, b)
    if len(diff) == 1:  # which scipy refuses; both sign patterns are as extreme
        return PairedTest(mean_interval(diff), 1.0)
    test = scipy.stats.permutation_test(
        (diff,),
        _mean,
        permutation_type="samples",  # of one sample: flips signs
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWS // len(diff)),
        rng=np.random.default_rng(seed),
    )
    return PairedTest(mean_interval(diff, resamples=resamples, seed=seed), float(test.pvalue))


def mcnemar(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], *, seed: int = 0) -> PairedTest:
    """Test whether two models are right equally often on the same items: McNemar's exact test.

    Args:
        a: whether the first model is right, bool [n].
        b: the same items for the second model, bool [n].
        seed: of the bootstrap of the interval.

    Returns:
        The difference of the accuracies with its bootstrap interval, and the exact binomial p-value over the
        items on which the models disagree (1 when there is none).

    Raises:
        ValueError: the items are not the same number.
    """
    diff = _difference(a.astype(np.float64), b.astype(np.float64))
    only_a, only_b = int((diff > 0).sum()), int((diff < 0).sum())
    p = float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return PairedTest(mean_interval(diff, seed=seed), p)


def verdict(test: PairedTest, a: str, b: str, *, lower: str = "lower") -> str:
    """Say in words what a paired test supports.

    Args:
        test: of a - b.
        a: name of the first model.
        b: name of the second model.
        lower: what the model with the smaller mean is called, "closer" for a divergence.
    """
    if not test.shown:
        return NO_DIFFERENCE
    return f"{a if test.diff.value < 0 else b} {lower}"


def _resampled(values: Array, resamples: int, seed: int) -> Array:
    """Return the means of bootstrap samples, [resamples]; the documents drawn depend on n and the seed alone."""
    n, generator = len(values), np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        means[start:stop] = values[generator.integers(0, n, (stop - start, n))].mean(axis=1)
    return means


def _percentiles(value: float, resampled: Array, confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _difference(a: Array, b: Array) -> Array:
    _require_same(a, b)
    return a - b


def _require_same(a: Array, b: Array) -> None:
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            f"a paired test needs the same documents twice, found shapes {a.shape} and {b.shape}"
        )


def _mean(values: Array, axis: int) -> Array:
    return np.asarray(values.mean(axis=axis))


def _exp(value: float) -> float:
    return math.exp(value) if value < math.log(np.finfo(np.float64).max) else math.inf
