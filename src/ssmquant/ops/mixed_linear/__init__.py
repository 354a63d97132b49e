"""`mixed_linear`: float activations, quantised inside a token and group, times int4 weights with int8 outlier channels.

The linear layer of Atom (arXiv 2310.19102, section 4): the input channels of largest magnitude are kept apart in int8,
so that one of them does not spoil the four bits of its neighbours. Activations come as floats because their scales are
those of groups in the weight's channel order. Atom gathers and quantises them in the norm before; here the op does it,
and a kernel may do it in the same pass.

Atom's attention keeps its keys and values in 4 bits besides. A state-space model has no such cache; its recurrent state
is the plan's business (site ``layers.*.state``), not this op's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype, expect_float, expect_scale, expect_shape
from ssmquant.ops.mixed_linear.reference import mixed_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["mixed_linear"]

_NAME = "mixed_linear"
_MAX_K = (2**31 - 1) // 127**2  # the int32 sum of a group or of the outliers cannot overflow up to here


def _check(
    x: Tensor,
    order: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    outliers: Tensor,
    outlier_scale: Tensor,
    bits: int,
    clip: float,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_float(_NAME, "x", x)
    expect_dtype(_NAME, "order", order, torch.int32)
    expect_shape(_NAME, "order", order, (x.shape[-1],))
    expect_dtype(_NAME, "packed", packed, torch.uint8)
    expect_dtype(_NAME, "outliers", outliers, torch.int8)
    expect_shape(_NAME, "outliers", outliers, (packed.shape[0], None))
    expect_dtype(_NAME, "weight_scale", weight_scale, torch.float32)
    expect_shape(_NAME, "weight_scale", weight_scale, (packed.shape[0], None))
    expect_dtype(_NAME, "outlier_scale", outlier_scale, torch.float32)
    expect_shape(_NAME, "outlier_scale", outlier_scale, (packed.shape[0],))
    ordinary, kept, groups = 2 * packed.shape[1], outliers.shape[1], weight_scale.shape[1]
    if ordinary + kept != x.shape[-1] or not kept or not groups or not ordinary or ordinary % groups:
        raise InputError(
            f"{_NAME}: K = {x.shape[-1]} must be the {ordinary} channels of packed, which {groups} groups must divide, "
            f"and the {kept} outliers, none of them 0"
        )
    if max(ordinary // groups, kept) > _MAX_K:
        raise InputError(
            f"{_NAME}: sums over {ordinary // groups} and {kept} channels could overflow int32; at most {_MAX_K}"
        )
    if not 2 <= bits <= 8:
        raise InputError(f"{_NAME}: bits must be 2 to 8, got {bits}")
    if not 0.0 < clip <= 1.0:
        raise InputError(f"{_NAME}: clip must be above 0 and at most 1, got {clip}")
    expect_scale(_NAME, "scale_out", scale_out, packed.shape[0])
    if bias is not None:
        expect_dtype(_NAME, "bias", bias, torch.float32)
        expect_shape(_NAME, "bias", bias, (packed.shape[0],))


def _fake(
    x: Tensor,
    order: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    outliers: Tensor,
    outlier_scale: Tensor,
    bits: int,
    clip: float,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    dtype = torch.float32 if scale_out is None else torch.int8
    return x.new_empty((*x.shape[:-1], packed.shape[0]), dtype=dtype)


mixed_linear = Op(
    "mixed_linear(Tensor x, Tensor order, Tensor packed, Tensor weight_scale, Tensor outliers, "
    "Tensor outlier_scale, int bits, float clip, Tensor? bias, Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
