"""Whether the tensors found in a folder are those that the model needs.

Every problem is gathered, then all are told at once.

    check_tensors(tensors, {"norm_f.weight": TensorSpec((768,))}, source="mamba2-130m")
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import torch

from ssmquant.errors import ModelError

__all__ = ["TensorSpec", "check_tensors"]

_SHOWN = 8


class TensorSpec(NamedTuple):
    """What one tensor must be.

    Attributes:
        shape: its shape.
        dtype: its dtype; None takes any floating-point dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


def check_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, TensorSpec], *, source: str
) -> None:
    """Hold tensors to their specifications: names, shapes, dtypes and finite values.

    Args:
        found: the tensors as read.
        expected: what each must be.
        source: where they come from, for the message.

    Raises:
        ModelError: a tensor is missing, not expected, of another shape or dtype, or holds NaN or infinity;
            the message lists the first problems and counts the rest.
    """
    unexpected = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    wrong = [
        f"{name}: {problem}"
        for name, spec in expected.items()
        if name in found
        for problem in _problems(found[name], spec)
    ]
    count = len(missing) + len(wrong) + len(unexpected)
    if not count:
        return
    lines = [
        # Names are compared for those shown alone: it takes time quadratic in their number.
        *(f"{name}: missing{_resembling(name, unexpected)}" for name in missing[:_SHOWN]),
        *wrong[:_SHOWN],
        *(f"{name}: found, but the model has no such tensor" for name in unexpected[:_SHOWN]),
    ][:_SHOWN]
    rest = f"\n  and {count - len(lines)} more" if count > len(lines) else ""
    raise ModelError(
        f"{source}: {len(expected)} tensors asked, {len(found)} found, {count} problems:\n  "
        + "\n  ".join(lines)
        + rest
        + "\ntake config.json and the tensors from the same save of the same model"
    )


def _problems(tensor: torch.Tensor, spec: TensorSpec) -> Iterator[str]:
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if shape != tuple(spec.shape):
        yield f"asked shape {tuple(spec.shape)}, found {shape}"
    if spec.dtype is None and not dtype.is_floating_point:
        yield f"asked a floating-point dtype, found {dtype}"
    if spec.dtype is not None and dtype != spec.dtype:
        yield f"asked {spec.dtype}, found {dtype}"
    if dtype.is_floating_point:
        # isfinite has no kernel for one-byte floats.
        values = tensor if dtype.itemsize > 1 else tensor.float()
        bad = tensor.numel() - int(torch.isfinite(values).sum())
        if bad:
            yield f"asked finite values, found NaN or infinity in {bad} of {tensor.numel()}"


def _resembling(name: str, others: Collection[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f" (the nearest found is {close[0]})" if close else ""
