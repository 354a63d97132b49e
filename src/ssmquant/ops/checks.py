"""Small checks that every op's `check` is made of: each names the op, what was asked and what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmquant.errors import InputError

__all__ = [
    "expect_codes_or_float",
    "expect_dtype",
    "expect_float",
    "expect_int32_sum",
    "expect_linear",
    "expect_packed",
    "expect_scale",
    "expect_shape",
    "expect_tokens",
]

_MAX_K = (2**31 - 1) // 127**2  # the int32 sum of products of int8 codes cannot overflow up to here


def expect_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    """Raise unless ``tensor`` has this shape; None stands for any size."""
    fits = tensor.dim() == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        want = ", ".join("any" if s is None else str(s) for s in shape)
        raise InputError(f"{op}: {name} must have shape [{want}], got {list(tensor.shape)}")


def expect_dtype(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """Raise unless ``tensor`` has one of these dtypes."""
    if tensor.dtype not in dtypes:
        raise InputError(f"{op}: {name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")


def expect_float(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is floating point: codes would need a scale."""
    if not tensor.dtype.is_floating_point:
        raise InputError(f"{op}: {name} must be floating point, got {tensor.dtype}")


def expect_codes_or_float(
    op: str, name: str, tensor: Tensor, scale: Tensor | None, *dtypes: torch.dtype
) -> None:
    """Raise unless the tensor is int8 with a scale, or of one of these float dtypes without one."""
    if scale is not None and tensor.dtype != torch.int8:
        raise InputError(f"{op}: {name} has a scale and must be torch.int8, got {tensor.dtype}")
    if scale is None and not tensor.dtype.is_floating_point:
        raise InputError(f"{op}: {name} is {tensor.dtype} and has no scale; pass its scale or a float tensor")
    if scale is None:
        expect_dtype(op, name, tensor, *dtypes)


def expect_scale(op: str, name: str, scale: Tensor | None, channels: int) -> None:
    """Raise unless a static scale is absent, or float32 with one value or one a channel."""
    if scale is None:
        return
    expect_dtype(op, name, scale, torch.float32)
    if scale.dim() != 1 or scale.shape[0] not in (1, channels):
        raise InputError(f"{op}: {name} must have shape [1] or [{channels}], got {list(scale.shape)}")


def expect_linear(
    op: str,
    x: Tensor,
    x_scale: Tensor,
    out_features: int,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> None:
    """Raise unless all but the weight of an integer linear layer is as it should be."""
    expect_dtype(op, "x", x, torch.int8)
    expect_dtype(op, "x_scale", x_scale, torch.float32)
    if tuple(x_scale.shape) not in ((1,), (*x.shape[:-1], 1)):
        raise InputError(
            f"{op}: x_scale must have shape [1] (static) or {[*x.shape[:-1], 1]} (per token), "
            f"got {list(x_scale.shape)}; a scale a channel of K cannot leave the integer sum"
        )
    expect_scale(op, "scale_out", scale_out, out_features)
    if bias is not None:
        expect_dtype(op, "bias", bias, torch.float32)
        expect_shape(op, "bias", bias, (out_features,))


def expect_packed(
    op: str, x: Tensor, packed: Tensor, name: str, groups: Tensor, *, packed_name: str = "packed"
) -> None:
    """Raise unless an int4 weight has two codes a byte for each column of x, and as many groups as divide them.

    Args:
        op: name of the op.
        x: ``[..., K]``.
        packed: to be uint8 ``[N, K / 2]``.
        name: of the tensor with one value a group.
        groups: that tensor, to be ``[N, groups]``.
        packed_name: what the op calls the weight.
    """
    columns = x.shape[-1]
    expect_dtype(op, packed_name, packed, torch.uint8)
    if columns % 2:
        raise InputError(f"{op}: K = {columns} is odd, but a byte holds two codes; add a column of zeros")
    expect_shape(op, packed_name, packed, (None, columns // 2))
    expect_shape(op, name, groups, (packed.shape[0], None))
    if not groups.shape[1] or columns % groups.shape[1]:
        raise InputError(
            f"{op}: {name} has {groups.shape[1]} groups, which do not divide K = {columns}; "
            "it must be [N, K / group_size]"
        )


def expect_int32_sum(op: str, columns: int) -> None:
    """Raise unless the int32 sum of that many products of int8 codes cannot overflow."""
    if columns > _MAX_K:
        raise InputError(f"{op}: K = {columns} could overflow int32; at most {_MAX_K}")


def expect_tokens(op: str, length: int) -> None:
    """Raise unless there is at least one token."""
    if length < 1:
        raise InputError(f"{op}: x has no tokens; pass at least one")
