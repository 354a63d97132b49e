"""`outlier_linear`: float activations, int8 a token but for the columns with outliers, times int8 weights.

The linear layer of LLM.int8() (arXiv 2208.07339, section 3.2): columns of the input in which any token reaches a
threshold are found at run time and multiplied in float16; all others become int8 codes with a scale a token. As in
bitsandbytes, the authors' library, the weight is stored in int8 alone and its outlier columns are dequantised from
there.

A column is looked for among all tokens of a call, as there. So a token's result depends on what it is run with: of all
linear layers here, this one alone may differ between prefill and decode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype, expect_float, expect_scale, expect_shape
from ssmquant.ops.outlier_linear.reference import outlier_columns
from ssmquant.ops.outlier_linear.reference import outlier_linear as _reference
from ssmquant.ops.registry import Op

__all__ = ["outlier_columns", "outlier_linear"]

_NAME = "outlier_linear"
_MAX_K = (2**31 - 1) // 127**2  # the int32 sum cannot overflow up to here


def _check(
    x: Tensor,
    threshold: float,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    expect_float(_NAME, "x", x)
    if not threshold > 0.0:
        raise InputError(
            f"{_NAME}: threshold must be above 0, got {threshold}; without outliers use int8_linear"
        )
    expect_dtype(_NAME, "weight", weight, torch.int8)
    expect_shape(_NAME, "weight", weight, (None, x.shape[-1]))
    if weight.shape[1] > _MAX_K:
        raise InputError(f"{_NAME}: K = {weight.shape[1]} could overflow int32; at most {_MAX_K}")
    expect_scale(_NAME, "weight_scale", weight_scale, weight.shape[0])
    expect_scale(_NAME, "scale_out", scale_out, weight.shape[0])
    if bias is not None:
        expect_dtype(_NAME, "bias", bias, torch.float32)
        expect_shape(_NAME, "bias", bias, (weight.shape[0],))


def _fake(
    x: Tensor,
    threshold: float,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    dtype = torch.float32 if scale_out is None else torch.int8
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


outlier_linear = Op(
    "outlier_linear(Tensor x, float threshold, Tensor weight, Tensor weight_scale, Tensor? bias, "
    "Tensor? scale_out) -> Tensor",
    check=_check,
    reference=_reference,
    fake=_fake,
)
