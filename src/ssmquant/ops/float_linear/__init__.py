"""`float_linear`: float activations times a weight as it lies at rest: floats, int8 codes, or int4 codes in groups.

weight                   scale         zero_point         grid
float   [N, K]           -             -                  -              a float weight
int8    [N, K]           [1] or [N]    -                  -              code * scale
uint8   [N, K / 2]       [N, groups]   -                  -              code * scale
uint8   [N, K / 2]       [N, groups]   int8 [N, groups]   -              (code - zero_point) * scale
uint8   [N, K / 2]       [N]           -                  [N, groups]    (code - zero_point) * multiplier * scale
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype, expect_float, expect_packed, expect_scale, expect_shape
from ssmquant.ops.float_linear.reference import float_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["float_linear"]

_NAME = "float_linear"


def _check(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    grid: Tensor | None,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_float(_NAME, "x", x)
    packed = weight.dtype == torch.uint8
    if not weight.dtype.is_floating_point:
        expect_dtype(_NAME, "weight", weight, torch.int8, torch.uint8)
    if weight.dtype.is_floating_point != (scale is None):
        raise InputError(
            f"{_NAME}: codes have a scale and a float weight has none; got {weight.dtype} and "
            f"{'no scale' if scale is None else 'a scale'}"
        )
    if (zero_point is not None or grid is not None) and not packed:
        raise InputError(
            f"{_NAME}: zero_point and grid belong to packed int4 codes, torch.uint8; got {weight.dtype}"
        )
    if zero_point is not None and grid is not None:
        raise InputError(f"{_NAME}: grid has zero points of its own; leave zero_point away")
    if packed and grid is not None:
        expect_packed(_NAME, x, weight, "grid", grid, packed_name="weight")
        expect_dtype(_NAME, "grid", grid, torch.uint8)
    elif packed and scale is not None:
        expect_packed(_NAME, x, weight, "scale", scale, packed_name="weight")
    else:
        expect_shape(_NAME, "weight", weight, (None, x.shape[-1]))
    if packed and zero_point is not None and scale is not None:
        expect_dtype(_NAME, "zero_point", zero_point, torch.int8)
        expect_shape(_NAME, "zero_point", zero_point, scale.shape)
    if scale is not None:
        expect_dtype(_NAME, "scale", scale, torch.float32)
    if grid is not None and scale is not None:
        expect_shape(_NAME, "scale", scale, (weight.shape[0],))
    elif not packed:
        expect_scale(_NAME, "scale", scale, weight.shape[0])
    expect_scale(_NAME, "scale_out", scale_out, weight.shape[0])
    if bias is not None:
        expect_dtype(_NAME, "bias", bias, x.dtype)
        expect_shape(_NAME, "bias", bias, (weight.shape[0],))


def _fake(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    grid: Tensor | None,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    dtype = x.dtype if scale_out is None else torch.int8
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


float_linear = Op(
    "float_linear(Tensor x, Tensor weight, Tensor? scale, Tensor? zero_point, Tensor? grid, Tensor? bias, "
    "Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
