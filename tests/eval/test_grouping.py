"""Letters mean what they say, Holm's correction is Holm's, and domains weigh the same."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmquant.eval import grouping
from ssmquant.eval.grouping import Pair, holm, letters, over_domains, pairwise_tests
from ssmquant.eval.statistics import Array, Interval, PairedTest

NAMES = [f"m{i}" for i in range(7)]


@st.composite
def differences(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    pairs = list(combinations(names, 2))
    return names, draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []


@given(differences())
def test_two_methods_share_a_letter_if_and_only_if_they_do_not_differ(
    case: tuple[list[str], list[tuple[str, str]]],
) -> None:
    names, different = case
    found = letters(names, different)
    assert all(found[name] for name in names)
    for a, b in combinations(names, 2):
        assert bool(set(found[a]) & set(found[b])) == ((a, b) not in different)


@given(differences())
def test_no_letter_can_be_left_out_and_the_best_method_has_the_first(
    case: tuple[list[str], list[tuple[str, str]]],
) -> None:
    names, different = case
    found = letters(names, different)
    used = {mark for marks in found.values() for mark in marks}
    assert "a" in found[names[0]]
    for dropped in used:
        kept = {name: set(marks) - {dropped} for name, marks in found.items()}
        assert any(not kept[name] for name in names) or any(
            not kept[a] & kept[b] for a, b in combinations(names, 2) if (a, b) not in different
        )


def test_letters_of_a_worked_example() -> None:
    # a ~ b and b ~ c, a and c differ, d differs from all.
    different = [("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert letters(["a", "b", "c", "d"], different) == {
        "a": ("a",),
        "b": ("a", "b"),
        "c": ("b",),
        "d": ("c",),
    }


def test_letters_go_on_after_z() -> None:
    names = [f"m{i:02}" for i in range(28)]
    found = letters(names, list(combinations(names, 2)))
    assert [found[name] for name in names[24:]] == [("y",), ("z",), ("a1",), ("b1",)]


def test_holm_of_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling: 0.02, 0.03, 0.06, 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert p <= corrected <= min(1.0, p * len(p_values)) or corrected == pytest.approx(p)


@given(
    st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_every_domain_weighs_the_same(domains: list[list[float]]) -> None:
    joined = over_domains([np.array(values) for values in domains])
    wanted = np.mean([np.mean(values) for values in domains])
    assert joined.mean() == pytest.approx(wanted, abs=1e-12)
    assert len(joined) == sum(map(len, domains))


def test_pairs_are_tested_on_the_same_documents() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(24)
    noise = 1e-3 * rng.random(24)
    (near, far, last) = pairwise_tests({"a": base, "b": base + noise - noise.mean(), "c": base + 0.1 + noise})
    assert (near.a, near.b, near.differ) == ("a", "b", False)
    assert (far.a, far.b, far.differ) == ("a", "c", True)
    assert (last.a, last.b, last.differ) == ("b", "c", True)
    assert far.test.diff.value == pytest.approx(-(0.1 + noise.mean()))
    assert far.p_holm == pytest.approx(3 * far.test.p)


@pytest.mark.parametrize("methods", [2, 24, 60])
def test_the_least_p_is_small_enough_for_any_number_of_methods(
    methods: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def most_extreme(a: Array, b: Array, *, resamples: int) -> PairedTest:
        return PairedTest(Interval(-1.0, -1.0, -1.0), 2 / (resamples + 1))  # as scipy's drawn test gives it

    monkeypatch.setattr(grouping, "paired_test", most_extreme)
    pairs = pairwise_tests({f"m{i}": np.zeros(40) for i in range(methods)})
    assert len(pairs) == methods * (methods - 1) // 2
    assert all(pair.differ for pair in pairs)


@pytest.mark.parametrize(
    ("low", "p", "corrected", "differ"),
    [
        (0.1, 0.01, 0.03, True),
        (-0.1, 0.01, 0.03, False),  # the interval holds 0
        (0.1, 0.02, 0.06, False),  # the correction says no
        (0.1, 0.06, 0.06, False),
    ],
)
def test_a_difference_needs_the_interval_and_the_corrected_test(
    low: float, p: float, corrected: float, differ: bool
) -> None:
    assert Pair("a", "b", PairedTest(Interval(0.5, low, 0.9), p), corrected).differ is differ
