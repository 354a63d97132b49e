"""The int8 format whose layer keeps input columns with outliers in float16."""

from __future__ import annotations

import pytest
import torch

from ssmquant.errors import InputError
from ssmquant.formats import Codes, format_for
from ssmquant.quantizers import round_to_nearest
from ssmquant.scheme import TensorScheme
from ssmquant.tolerance import error_ratio

ROWS, COLUMNS = 6, 24
SCHEME = TensorScheme(granularity="per-channel", outlier_threshold=6.0)
PLAIN = TensorScheme(granularity="per-channel")


def codes() -> Codes:
    return round_to_nearest(torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)), SCHEME)


def test_what_is_stored_is_that_of_int8() -> None:
    """Outliers are found at run time: nothing more is stored."""
    found, plain = format_for(SCHEME), format_for(PLAIN)
    assert (found.name, plain.name) == ("int8-outliers", "int8")
    assert found.tensors((ROWS, COLUMNS), SCHEME) == plain.tensors((ROWS, COLUMNS), PLAIN)
    stored = found.pack(codes())
    assert all(torch.equal(stored[name], tensor) for name, tensor in plain.pack(codes()).items())
    assert torch.equal(found.dequantize(stored), plain.dequantize(stored))


def test_an_outlier_does_not_cost_its_neighbours_their_codes() -> None:
    found = format_for(SCHEME)
    stored = found.pack(codes())
    x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(1))
    x[:, 3] = 300.0
    exact = x.double() @ found.dequantize(stored).double().T
    rest = exact - x[:, [3]].double() @ found.dequantize(stored).double()[:, [3]].T
    by_threshold = {}
    for threshold in (6.0, 1000.0):
        scheme = SCHEME.model_copy(update={"outlier_threshold": threshold})
        by_threshold[threshold] = format_for(scheme).linear(stored, x, None, None, None).double() - exact
    assert error_ratio(rest + by_threshold[6.0], rest) < 0.2 * error_ratio(rest + by_threshold[1000.0], rest)


def test_activations_that_are_codes_already_are_refused() -> None:
    found = format_for(SCHEME)
    with pytest.raises(InputError, match="x must be floating point"):
        found.linear(
            found.pack(codes()), torch.zeros(2, COLUMNS, dtype=torch.int8), torch.ones(1), None, None
        )
