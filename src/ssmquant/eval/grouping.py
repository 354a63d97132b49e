"""Letters for methods that cannot be told apart: a compact letter display of pairwise paired tests.

**Definition.** Two methods differ when `paired_test` of their documents says so after Holm's correction for the
number of pairs, and its interval excludes zero. Two methods share a letter if and only if they do not differ. Sharing
is no proof of equality and does not carry over: a ~ b and b ~ c leave open whether a and c differ.

    pairs = pairwise_tests({"a": kl_a, "b": kl_b, "c": kl_c})               # float64 [documents] each
    letters(["a", "b", "c"], [(p.a, p.b) for p in pairs if p.differ])   # {"a": ("a",), "b": ("a", "b"), "c": ("b",)}

Sources: S. Holm, Scandinavian Journal of Statistics 6, 1979; H.-P. Piepho, Journal of Computational and Graphical
Statistics 13, 2004 (insert and absorb, sweep).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from ssmquant.eval.statistics import CONFIDENCE, RESAMPLES, Array, PairedTest, paired_test

__all__ = ["Pair", "holm", "letters", "over_domains", "pairwise_tests"]

# Sign patterns tried for each pair: the least p of a test, 2 / patterns, times the number of pairs must stay below
# 1 - CONFIDENCE, or nothing could ever be shown among many methods. This makes it 0.02.
_PATTERNS_PER_PAIR = 100


class Pair(NamedTuple):
    """Two methods on the same documents."""

    a: str
    b: str
    test: PairedTest
    """Of a - b."""
    p_holm: float
    """p of the test, corrected for the number of pairs."""

    @property
    def differ(self) -> bool:
        """Whether a difference is shown."""
        return self.test.shown and self.p_holm <= 1 - CONFIDENCE


def over_domains(domains: Sequence[Array]) -> Array:
    """Join the documents of several domains so that their mean is the mean over domains of the domains' means.

    Args:
        domains: one number a document, [n] each; n may differ.

    Returns:
        float64 [sum of n]: each number times what makes its domain weigh as much as every other. A test or interval
        of it takes all documents for one sample; the spread between domains widens the interval.
    """
    total = sum(len(values) for values in domains)
    return np.concatenate([values * (total / (len(domains) * len(values))) for values in domains])


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method, which needs no independence.

    Args:
        p_values: of each test.

    Returns:
        The corrected ones in the same order; those of at most alpha are together wrong with probability alpha.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def pairwise_tests(values: Mapping[str, Array]) -> tuple[Pair, ...]:
    """Test every pair of methods.

    Args:
        values: one number a document for each method, [n], the same documents.
    """
    pairs = list(combinations(values, 2))
    resamples = max(RESAMPLES, _PATTERNS_PER_PAIR * len(pairs))
    tests = [paired_test(values[a], values[b], resamples=resamples) for a, b in pairs]
    corrected = holm([test.p for test in tests])
    return tuple(Pair(a, b, test, p) for (a, b), test, p in zip(pairs, tests, corrected, strict=True))


def letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Give letters to methods: two share one if and only if they are not different.

    Args:
        names: the methods, best first: the best gets the letter a.
        different: the pairs of which a difference is shown.

    Returns:
        The letters of each method, at least one: a … z, then a1 … z1 and so on.
    """
    groups = _sweep(_insert_and_absorb(names, different))
    groups.sort(key=lambda group: sorted(names.index(name) for name in group))
    marks = [
        ascii_lowercase[i % 26] + (str(i // 26) if i >= len(ascii_lowercase) else "")
        for i in range(len(groups))
    ]
    return {
        name: tuple(mark for mark, group in zip(marks, groups, strict=True) if name in group)
        for name in names
    }


def _insert_and_absorb(names: Sequence[str], different: Iterable[tuple[str, str]]) -> list[frozenset[str]]:
    """Return the largest sets without a different pair."""
    groups = [frozenset(names)]
    for a, b in different:
        split = [
            part for group in groups for part in ((group - {a}, group - {b}) if {a, b} <= group else (group,))
        ]
        groups = [
            group
            for i, group in enumerate(split)
            if not any(group < other or (group == other and j < i) for j, other in enumerate(split))
        ]
    return groups


def _sweep(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    """Return the groups without those whose every pair (and member) is in another one."""
    kept = list(groups)
    for group in groups:
        others = [other for other in kept if other is not group]
        together = ({a, b} for a in group for b in group)
        if all(any(pair <= other for other in others) for pair in together):
            kept = others
    return kept
