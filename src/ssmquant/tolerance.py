"""The tolerance classes of the numerics contract: how far an implementation may be from the exact result.

    integers                   equal bit for bit                               `assert_equal_codes`
    requantised outputs        within 1 code on at most 1e-3 of the elements   `assert_requantised`
    float32 sums of K terms    error ratio at most 4 * eps * sqrt(K)           `assert_float32`
    float16, bfloat16          error ratio at most the type's eps              `assert_half`

Tests and the checks of kernels use these and no others; a place that needs another says why beside it. Nothing here
knows how the exact result was found.

Example:
    >>> import torch
    >>> exact = torch.linspace(-1, 1, 8, dtype=torch.float64)
    >>> assert_float32(exact.float(), exact, k=1)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "REQUANTISED_SHARE",
    "assert_equal_codes",
    "assert_float32",
    "assert_half",
    "assert_requantised",
    "error_ratio",
    "float32_limit",
]

REQUANTISED_SHARE = 1e-3
"""Largest share of requantised elements that may be off by one code."""


def error_ratio(got: Tensor, ref: Tensor) -> float:
    """Return ``rms(ref - got) / rms(ref)``, computed in float64.

    Args:
        got: float tensor of any shape.
        ref: the exact result, same shape.

    Returns:
        0.0 for equal tensors (zeros and no elements included), inf where a zero ``ref`` is missed, nan where one of
        them is not finite.
    """
    exact = ref.detach().cpu().double()
    error = float((got.detach().cpu().double() - exact).norm())
    size = float(exact.norm())
    if size == 0.0:
        return math.inf if error > 0.0 else error
    return error / size


def float32_limit(k: int) -> float:
    """Return the largest error ratio of float32 results that are sums of ``k`` terms."""
    return 4.0 * torch.finfo(torch.float32).eps * math.sqrt(k)


def assert_equal_codes(got: Tensor, ref: Tensor, what: str = "codes") -> None:
    """Raise AssertionError unless two integer tensors are equal bit for bit.

    Args:
        got: integer tensor.
        ref: the exact codes: same shape and dtype.
        what: name of the tensor, for the message.
    """
    _assert_alike(got, ref, what, ref.dtype)
    wrong = (got.cpu() != ref.cpu()).nonzero()
    if len(wrong):
        raise AssertionError(f"{what}: {_first(got, ref, wrong)}; they must be equal")


def assert_requantised(got: Tensor, ref: Tensor, what: str = "requantised output") -> None:
    """Raise AssertionError unless int8 codes are within 1 of the exact ones and nearly all are equal to them.

    A float result on its way to a code may lie a rounding error beside the middle between two codes.

    Args:
        got: int8 tensor.
        ref: int8 codes of the exact result, same shape.
        what: name of the tensor, for the message.
    """
    _assert_alike(got, ref, what, torch.int8)
    distance = (got.cpu().int() - ref.cpu().int()).abs()
    wrong = (distance > 1).nonzero()
    if len(wrong):
        raise AssertionError(f"{what}: more than 1 code apart: {_first(got, ref, wrong)}")
    wrong = distance.nonzero()
    if len(wrong) > REQUANTISED_SHARE * ref.numel():
        raise AssertionError(
            f"{what}: {_first(got, ref, wrong)}; at most {REQUANTISED_SHARE:g} of them may differ"
        )


def assert_float32(got: Tensor, ref: Tensor, k: int, what: str = "float32 output") -> None:
    """Raise AssertionError unless float32 results are within ``4 * eps * sqrt(k)`` of the exact ones.

    Args:
        got: float32 tensor.
        ref: the exact result, same shape, float32 or float64.
        k: number of terms that each element is a sum of; 1 where there is no sum.
        what: name of the tensor, for the message.
    """
    _assert_alike(got, ref, what, torch.float32)
    _assert_ratio(got, ref, float32_limit(k), what)


def assert_half(got: Tensor, ref: Tensor, what: str = "half-precision output") -> None:
    """Raise AssertionError unless half-precision results are within the eps of their type of the exact ones.

    The sums behind them are float32 and only the result is rounded to half precision, so the limit knows no K.

    Args:
        got: float16 or bfloat16 tensor.
        ref: the exact result, same shape, any float type.
        what: name of the tensor, for the message.
    """
    if got.dtype not in (torch.float16, torch.bfloat16):
        raise AssertionError(f"{what}: must be torch.float16 or torch.bfloat16, is {got.dtype}")
    _assert_alike(got, ref, what, got.dtype)
    _assert_ratio(got, ref, torch.finfo(got.dtype).eps, what)


def _assert_alike(got: Tensor, ref: Tensor, what: str, dtype: torch.dtype) -> None:
    if got.dtype != dtype:
        raise AssertionError(f"{what}: must be {dtype}, is {got.dtype}")
    if got.shape != ref.shape:
        raise AssertionError(f"{what}: must have shape {list(ref.shape)}, has {list(got.shape)}")


def _assert_ratio(got: Tensor, ref: Tensor, limit: float, what: str) -> None:
    ratio = error_ratio(got, ref)
    if not ratio <= limit:  # written so that nan fails
        raise AssertionError(f"{what}: error ratio {ratio:.3g}; at most {limit:.3g} is allowed")


def _first(got: Tensor, ref: Tensor, wrong: Tensor) -> str:
    """Return how many elements differ and the first of them, from the indices of all that do."""
    index = tuple(wrong[0].tolist())
    return (
        f"{len(wrong)} of {ref.numel()} elements differ, the first at {list(index)}: "
        f"{got[index].item()} in place of {ref[index].item()}"
    )
