"""The choice of schemes under two limits: against every choice there is, and never beyond a limit."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmquant import allocation
from ssmquant.allocation import Solution, allocate
from ssmquant.errors import InputError, SsmquantError


@st.composite
def problems(
    draw: st.DrawFn,
) -> tuple[list[list[float]], list[list[int]], int, list[float], list[int], float]:
    """Weights with two or three schemes, layers, and limits from just reachable to beyond all that can be used."""
    cost = st.floats(0.0, 1.0, allow_subnormal=False)
    counts = draw(st.lists(st.integers(2, 3), min_size=1, max_size=5))
    costs = [draw(st.lists(cost, min_size=n, max_size=n)) for n in counts]
    sizes = [draw(st.lists(st.integers(1, 10**6), min_size=n, max_size=n)) for n in counts]
    smallest, largest = sum(map(min, sizes)), sum(map(max, sizes))
    layers = draw(st.integers(0, 3))
    work = draw(st.lists(st.integers(1, 10**9), min_size=layers, max_size=layers))
    share = draw(st.floats(0.0, 1.0))
    return (
        costs,
        sizes,
        draw(st.integers(smallest, largest + 5)),
        draw(st.lists(cost, min_size=layers, max_size=layers)),
        work,
        share * sum(work),
    )


def total(problem: tuple[object, ...], schemes: tuple[int, ...], floats: tuple[bool, ...]) -> float:
    costs, _, _, codes, _, _ = problem
    of_weights = sum(options[s] for options, s in zip(costs, schemes, strict=True))  # type: ignore[call-overload]
    kept: float = of_weights + sum(c for c, f in zip(codes, floats, strict=True) if not f)  # type: ignore[call-overload]
    return kept


def fits(problem: tuple[object, ...], schemes: tuple[int, ...], floats: tuple[bool, ...]) -> bool:
    _, sizes, limit, _, work, float_work = problem
    used = sum(options[s] for options, s in zip(sizes, schemes, strict=True))  # type: ignore[call-overload]
    done = sum(w for w, f in zip(work, floats, strict=True) if f)  # type: ignore[call-overload]
    return bool(used <= limit and done <= float_work)  # type: ignore[operator]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_no_choice_that_fits_is_better(
    problem: tuple[list[list[float]], list[list[int]], int, list[float], list[int], float],
) -> None:
    costs, _, _, codes, _, _ = problem
    found = allocate(*problem)
    assert fits(problem, found.schemes, found.floats)
    every = product(product(*(range(len(o)) for o in costs)), product((False, True), repeat=len(codes)))
    best = min(total(problem, *choice) for choice in every if fits(problem, *choice))
    # HiGHS proves the optimum up to 1e-6 of a cost that is scaled to 1,000 at most.
    assert total(problem, found.schemes, found.floats) <= best + 2e-9
    assert found.gap == pytest.approx(0.0, abs=1e-6)


def test_the_weight_that_gains_most_a_byte_gets_its_bytes() -> None:
    costs = [[1.0, 0.0], [1.0, 0.0], [10.0, 0.0]]
    sizes = [[4, 8], [4, 8], [40, 80]]
    assert allocate(costs, sizes, 48 + 8, [], [], 0.0).schemes == (1, 1, 0)
    assert allocate(costs, sizes, 48 + 40, [], [], 0.0).schemes == (0, 0, 1)
    assert allocate(costs, sizes, 48, [], [], 0.0) == Solution((0, 0, 0), (), 0.0)
    assert allocate(costs, sizes, 10**9, [], [], 0.0).schemes == (1, 1, 1)


def test_float_work_goes_to_the_layer_that_loses_most() -> None:
    found = allocate([[0.0]], [[1]], 1, [0.1, 0.3, 0.2], [10, 10, 10], 20.0)
    assert found.floats == (False, True, True)
    assert allocate([[0.0]], [[1]], 1, [0.1, 0.3, 0.2], [10, 10, 10], 9.9).floats == (False,) * 3


def test_tiny_divergences_are_told_apart() -> None:
    """Those of int8 are 1e-6 nats and less, which is the gap that the solver takes for none."""
    costs = [[1e-8, 0.0], [2e-8, 0.0], [1e-8, 0.0]]
    assert allocate(costs, [[1, 2]] * 3, 4, [], [], 0.0).schemes == (0, 1, 0)
    assert allocate([[5e-324, 0.0]], [[1, 2]], 2, [], [], 0.0).schemes == (1,)


def test_a_limit_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(InputError, match="a limit of 7 bytes is below the smallest that is reachable, 8"):
        allocate([[1.0, 0.0], [1.0, 0.0]], [[4, 8], [4, 8]], 7, [], [], 0.0)


def test_a_solver_without_an_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(x=None, message="Time limit reached.")
    monkeypatch.setattr(allocation, "milp", lambda *_args, **_options: answer)
    with pytest.raises(SsmquantError, match="no choice of schemes was found in 60 seconds: Time limit"):
        allocate([[1.0, 0.0]], [[4, 8]], 8, [], [], 0.0)
