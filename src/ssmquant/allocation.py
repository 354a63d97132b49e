"""A scheme for every weight and float activations for some layers, at least cost within two limits: exactly.

A multiple-choice knapsack (Sinha and Zoltners 1979, Operations Research 27/3): of each weight's schemes one is taken,
each layer's activations have codes or are float; bytes and float work are limited, costs add up. Quamba2 (arXiv
2503.22879, section 4) looks for such a choice by an evolutionary search. With costs that add up, an integer program of
a few hundred variables has a proven optimum in well under a second (HiGHS, through scipy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import floor
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from ssmquant.errors import InputError, SsmquantError
from ssmquant.planning import Allocation, Plan, input_site
from ssmquant.scheme import FLOAT32
from ssmquant.sensitivity import ACTIVATIONS, Divergences
from ssmquant.sites import SiteKind

__all__ = ["Solution", "allocate", "settle"]

_SECONDS = 60.0  # after which the best choice so far is taken, with the bound on what a better one could gain


class Solution(NamedTuple):
    """A choice.

    Attributes:
        schemes: place of the scheme of each weight.
        floats: whether each layer's activations are float.
        gap: by how much of its cost the choice may be above the optimum, at most; 0 where it is proven to be it.
    """

    schemes: tuple[int, ...]
    floats: tuple[bool, ...]
    gap: float


def allocate(
    costs: Sequence[Sequence[float]],
    sizes: Sequence[Sequence[int]],
    limit: int,
    codes: Sequence[float],
    work: Sequence[int],
    float_work: float,
) -> Solution:
    """Return the choice of least total cost within both limits.

    Args:
        costs: of every weight, the cost of each of its schemes.
        sizes: bytes of the same.
        limit: most bytes of all weights.
        codes: cost of each layer's activations as codes; as floats they cost nothing.
        work: multiplications of each layer.
        float_work: most multiplications that layers with float activations do.

    Raises:
        InputError: even the smallest schemes exceed the limit.
        SsmquantError: no choice was found in time.
    """
    smallest = sum(min(options) for options in sizes)
    if smallest > limit:
        raise InputError(f"a limit of {limit:,} bytes is below the smallest that is reachable, {smallest:,}")
    weights, layers = sum(map(len, costs)), len(codes)
    # One variable a scheme of a weight, then one a layer with float activations: 1 where it is taken.
    cost = np.concatenate([np.array([c for options in costs for c in options]), -np.asarray(codes)])
    one_each = np.zeros((len(costs), weights + layers))
    place = 0
    for row, options in enumerate(costs):
        one_each[row, place : place + len(options)] = 1
        place += len(options)
    size = np.concatenate([np.array([s for options in sizes for s in options]), np.zeros(layers)])
    floats = np.concatenate([np.zeros(weights), np.asarray(work)])
    scale = np.abs(cost).max(initial=0.0) or 1.0
    found = milp(
        cost / scale * 1e3,  # HiGHS takes a gap of 1e-6 for none
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(np.stack([size, floats]), -np.inf, [limit, floor(float_work)]),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
    )
    if found.x is None:
        raise SsmquantError(f"no choice of schemes was found in {_SECONDS:g} seconds: {found.message}")
    taken = found.x.round().astype(bool)
    chosen: list[int] = []
    place = 0
    for options in costs:
        chosen.append(int(taken[place : place + len(options)].argmax()))
        place += len(options)
    solution = Solution(
        tuple(chosen), tuple(map(bool, taken[weights:])), max(float(found.mip_gap or 0.0), 0.0)
    )
    used = sum(options[choice] for options, choice in zip(sizes, solution.schemes, strict=True))
    assert used <= limit, "the solver's tolerance is below a byte"
    return solution


def settle(plan: Plan, divergence: Divergences) -> Plan:
    """Return a plan with what it left to measurement chosen.

    Args:
        plan: a plan with a choice.
        divergence: of each of its weights under each of its schemes, and of each layer's activations.

    Raises:
        SsmquantError: no choice was found in time.
    """
    choice = plan.choice
    assert choice is not None
    rows = {row.site.name: row for row in plan.rows}
    layers = sorted({_layer(name) for name in rows if name.startswith("layers.")}, key=_number)
    work = dict.fromkeys(layers, 0)
    activations: dict[str, list[str]] = {layer: [] for layer in layers}
    for name, row in rows.items():
        if name.startswith("layers.") and row.site.kind is SiteKind.ACTIVATION:
            activations[_layer(name)].append(name)
        elif name.startswith("layers.") and input_site(row.site) is not None:
            work[_layer(name)] += row.site.numel
    solution = allocate(
        [[divergence[site][s.short()] for s in schemes] for site, schemes in choice.schemes.items()],
        [
            [replace(rows[site], scheme=scheme).weight_bytes() for scheme in schemes]
            for site, schemes in choice.schemes.items()
        ],
        choice.limit,
        [divergence[layer][ACTIVATIONS] for layer in layers],
        list(work.values()),
        choice.float_share * sum(work.values()),
    )
    floats = [layer for layer, is_float in zip(layers, solution.floats, strict=True) if is_float]
    schemes = {name: FLOAT32 for layer in floats for name in activations[layer]}
    for (site, options), place in zip(choice.schemes.items(), solution.schemes, strict=True):
        schemes[site] = options[place]
    settled = plan.with_schemes(schemes)
    chosen = [row for row in settled.weights() if row.site.name in choice.schemes]
    allocation = Allocation(
        budget=choice.budget,
        bits=8 * sum(row.weight_bytes() for row in chosen) / sum(row.site.numel for row in chosen),
        float_share=sum(work[layer] for layer in floats) / sum(work.values()),
        gap=solution.gap,
        divergence={name: dict(found) for name, found in divergence.items()},
    )
    return replace(settled, choice=None, allocation=allocation)


def _layer(site: str) -> str:
    """Return ``layers.3`` of ``layers.3.in_proj.weight``."""
    return ".".join(site.split(".")[:2])


def _number(layer: str) -> int:
    return int(layer.split(".")[1])
