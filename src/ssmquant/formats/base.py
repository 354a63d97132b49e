"""`Format`: what a linear layer stores, and which op runs it. How the codes were chosen is the quantizers' business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ssmquant import numerics
from ssmquant.ops.quantize import quantize_static
from ssmquant.scheme import TensorScheme

__all__ = ["Codes", "Format", "TensorSpec", "float_linear"]


def float_linear(
    weight: Tensor, x: Tensor, x_scale: Tensor | None, bias: Tensor | None, scale_out: Tensor | None
) -> Tensor:
    """Return ``x @ weight.T + bias`` in the float type of x (float32 for codes), quantised if asked for.

    Args:
        weight: float ``[out, in]``, of any float dtype.
        x: float, or codes with their scale, ``[..., in]``.
        x_scale: float32 ``[1]``, ``[in]`` or ``[..., 1]``; None for a float x.
        bias: float ``[out]``.
        scale_out: float32 ``[1]`` or ``[out]``; None for float results.
    """
    x = numerics.dequantize(x, x_scale)
    y = functional.linear(x, weight.to(x.dtype), bias)
    return y if scale_out is None else quantize_static(y, scale_out)


class TensorSpec(NamedTuple):
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Codes(NamedTuple):
    """The codes of a weight, as a quantizer chose them, before any packing.

    Attributes:
        codes: int8 ``[out, in]``.
        scale: float32: ``[1]``, ``[out]`` or ``[out, groups]``.
    """

    codes: Tensor
    scale: Tensor


class Format(ABC):
    """One way to store and run a weight ``[out, in]``. Stateless; the layer holds the tensors."""

    name: ClassVar[str]

    @abstractmethod
    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether this format holds weights of the scheme."""

    @abstractmethod
    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, TensorSpec]:
        """Return names, shapes and dtypes of what is stored."""

    @abstractmethod
    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """Return the stored tensors of a weight's codes."""

    @abstractmethod
    def dequantize(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the float weight ``[out, in]`` that the stored tensors stand for."""

    @abstractmethod
    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return ``x @ W.T + bias``.

        Args:
            stored: the tensors named by `tensors`.
            x: int8 codes ``[..., in]`` with their scale, or a float without.
            x_scale: float32 ``[1]``, ``[in]`` or ``[..., 1]``; None for a float x.
            bias: float ``[out]``.
            scale_out: float32 ``[1]`` or ``[out]``; None for float results.
        """
