from __future__ import annotations

import math

import numpy as np
import pytest

from ssmquant.eval import statistics
from ssmquant.eval.statistics import (
    NO_DIFFERENCE,
    Array,
    Interval,
    PairedTest,
    mcnemar,
    mean_interval,
    paired_test,
    proportion_interval,
    ratio_interval,
    verdict,
)


def normal(n: int, *, mean: float = 0.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def test_interval_of_normal_data_is_that_of_theory() -> None:
    values = normal(1000, mean=3.0)
    found = mean_interval(values)
    margin = 1.96 * values.std() / math.sqrt(1000)
    assert found.value == values.mean()
    assert found.high - found.value == pytest.approx(margin, rel=0.05)
    assert found.value - found.low == pytest.approx(margin, rel=0.05)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    found = [mean_interval(normal(60, mean=3.0, seed=seed), resamples=500) for seed in range(400)]
    covered = np.mean([interval.contains(3.0) for interval in found])
    # 95 % less the known shortfall at n = 60 (about 1 %); ± 3 standard errors of 400 draws.
    assert 0.905 <= covered <= 0.98
    narrow = [mean_interval(normal(60, mean=3.0, seed=s), confidence=0.5, resamples=500) for s in range(400)]
    assert 0.42 <= np.mean([interval.contains(3.0) for interval in narrow]) <= 0.58


def test_interval_of_a_ratio_is_the_exponential_of_that_of_the_mean() -> None:
    """exp then quantile, done the long way on the same draws."""
    differences = normal(30, mean=0.2)
    draws = np.random.default_rng(7).integers(0, 30, (2000, 30))
    low, high = np.quantile(np.exp(differences[draws].mean(axis=1)), [0.025, 0.975])
    found = mean_interval(differences, resamples=2000, seed=7).exp()
    # Quantiles fall between two draws and are interpolated before or after the exponential.
    assert found == pytest.approx((math.exp(differences.mean()), low, high), rel=1e-5)


def test_interval_of_a_ratio_is_of_the_pairs() -> None:
    """Documents differ a thousand times more than the models; the same ones are drawn for both."""
    base = np.random.default_rng(0).lognormal(0.0, 1.5, 60)
    found = ratio_interval(base * (0.5 + 0.001 * normal(60, seed=1)), base)
    assert found.value == pytest.approx(0.5, abs=1e-3)
    assert 0 < found.high - found.low < 2e-3
    apart = ratio_interval(np.random.default_rng(1).lognormal(0.0, 1.5, 60), base)
    assert apart.high > 1.2 * apart.value
    with pytest.raises(ValueError, match="same documents"):
        ratio_interval(base, base[1:])
    assert ratio_interval(base[:1], base[:1]) == (1.0, -math.inf, math.inf)


def test_intervals_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(50)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)
    whole = mean_interval(values)
    monkeypatch.setattr(statistics, "_DRAWS", 50 * 999)  # ten passes and a rest
    assert mean_interval(values) == pytest.approx(whole, rel=0.05)


def test_one_document_says_nothing_about_others() -> None:
    found = mean_interval(np.array([1.5]))
    assert found == (1.5, -math.inf, math.inf)
    assert found.exp() == (math.exp(1.5), 0.0, math.inf)
    assert found.bounds() is None
    assert found.exp().bounds() is None


def test_no_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="found none"):
        mean_interval(np.empty(0))


def test_share_of_hits_has_the_interval_of_wilson() -> None:
    found = proportion_interval(np.array([True, True, False]))
    z = 1.959964
    centre, margin = 2 / 3 + z**2 / 6, z * math.sqrt(2 / 27 + z**2 / 36)
    scale = 1 + z**2 / 3
    assert found == pytest.approx((2 / 3, (centre - margin) / scale, (centre + margin) / scale), rel=1e-6)


def test_no_hit_is_not_certainty() -> None:
    assert proportion_interval(np.zeros(96, dtype=bool)) == pytest.approx((0, 0, 3.841459 / 99.841459))


@pytest.mark.parametrize("documents", [4, 5, 8, 12])
def test_exact_test_counts_sign_patterns(documents: int) -> None:
    """All differences positive: only all-plus and all-minus are as extreme, 2 of 2^n patterns."""
    a = np.arange(1.0, documents + 1)
    assert paired_test(a, np.zeros(documents)).p == pytest.approx(2 / 2**documents, rel=1e-12)


def test_exact_test_of_mixed_signs() -> None:
    # Sums of ±1 ±2 ±4: the observed 1 + 2 - 4 = -1; |sum| ≥ 1 always, so nothing is less extreme.
    assert paired_test(np.array([1.0, 2.0, -4.0]), np.zeros(3)).p == 1.0
    # Observed 5: patterns with |sum| ≥ 5 are ±7 and ±5, 4 of 8.
    assert paired_test(np.array([-1.0, 2.0, 4.0]), np.zeros(3)).p == pytest.approx(0.5)


def test_shift_is_found_beside_far_larger_differences_between_documents() -> None:
    documents = normal(100, seed=1) * 50
    a, b = documents + normal(100, seed=2), documents + normal(100, mean=1.0, seed=3)
    found = paired_test(a, b)
    assert found.diff.value == pytest.approx(-1.0, abs=0.4)
    assert 0 < found.p < 1e-3  # Monte Carlo never says 0
    assert found.shown
    assert verdict(found, "a", "b") == "a lower"
    assert verdict(paired_test(b, a), "b", "a", lower="closer") == "a closer"


def test_no_shift_is_not_shown() -> None:
    found = paired_test(normal(100, seed=2), normal(100, seed=3))
    assert found.p > 0.05
    assert not found.shown
    assert verdict(found, "a", "b") == NO_DIFFERENCE


def test_false_alarms_are_as_rare_as_promised() -> None:
    alarms = [paired_test(normal(10, seed=seed), np.zeros(10), resamples=1024).shown for seed in range(300)]
    assert np.mean(alarms) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_few_documents_cannot_show_a_difference() -> None:
    """Their interval excludes 0 as soon as all agree, by chance every sixteenth time; p is 1/16, not below 5 %."""
    found = paired_test(np.arange(1.0, 6.0), np.zeros(5))
    assert not found.diff.contains(0.0)
    assert verdict(found, "a", "b") == NO_DIFFERENCE
    assert verdict(paired_test(np.arange(1.0, 9.0), np.zeros(8)), "a", "b") == "b lower"


def test_interval_that_contains_zero_shows_nothing_whatever_the_p() -> None:
    assert verdict(PairedTest(Interval(0.1, -0.01, 0.2), p=0.001), "a", "b") == NO_DIFFERENCE


def test_equal_models_differ_in_nothing() -> None:
    values = normal(40)
    found = paired_test(values, values)
    assert found == (Interval(0.0, 0.0, 0.0), 1.0)
    assert found.diff.contains(0.0)
    assert not found.shown


def test_paired_test_depends_on_the_seed_alone() -> None:
    a, b = normal(60, seed=2), normal(60, mean=0.3, seed=3)
    assert paired_test(a, b) == paired_test(a, b)
    assert paired_test(a, b).p != paired_test(a, b, seed=1).p


def test_mcnemar_is_the_binomial_test_of_the_disagreements() -> None:
    both, neither, only_a, only_b = 30, 20, 10, 2
    a = np.repeat([True, False, True, False], [both, neither, only_a, only_b])
    b = np.repeat([True, False, False, True], [both, neither, only_a, only_b])
    found = mcnemar(a, b)
    # P(at most 2 or at least 10 of 12 heads) = 2·(1 + 12 + 66) / 4096.
    assert found.p == pytest.approx(158 / 4096)
    assert found.diff.value == pytest.approx(8 / 62)
    assert found.shown
    assert mcnemar(b, a).diff.value == pytest.approx(-8 / 62)


def test_mcnemar_without_disagreement() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right) == (Interval(0.0, 0.0, 0.0), 1.0)


@pytest.mark.parametrize("other", [np.zeros(2), np.zeros((3, 1))])
def test_different_documents_are_refused(other: Array) -> None:
    with pytest.raises(ValueError, match="same documents twice"):
        paired_test(np.zeros(3), other)
