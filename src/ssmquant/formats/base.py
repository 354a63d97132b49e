"""`Format`: what a linear layer stores, and which op runs it. How the codes were chosen is the quantizers' business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ssmquant.scheme import TensorScheme

__all__ = ["Codes", "Format", "Sparse", "StoredTensor"]


class StoredTensor(NamedTuple):
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Sparse(NamedTuple):
    """What is added to single weights, beside their codes.

    Attributes:
        values: float16 ``[nnz]``.
        positions: int32 ``[nnz]``, ascending: ``row * in + column`` of each.
    """

    values: Tensor
    positions: Tensor


class Codes(NamedTuple):
    """The codes of a weight, as a quantizer chose them, before any packing.

    Attributes:
        codes: int8 ``[out, in]``.
        scale: float32: ``[1]``, ``[out]`` or ``[out, groups]``; of a lut scheme, the table that codes are looked up in,
            float16 ``[out, 2**bits]``.
        order: int32 ``[in]``, where outlier channels are kept apart: the input channel of each column, theirs last.
        outliers: int8 ``[out, outliers]`` with a scale a row; ``codes`` are then ``[out, in - outliers]``.
        zero_point: int8, one a scale or group; None for a symmetric scheme.
        sparse: of a lut scheme with a sparse part.
        multiplier: uint8 ``[out, groups]``, where the step of a group is this times the row's ``scale [out]``.
    """

    codes: Tensor
    scale: Tensor
    order: Tensor | None = None
    outliers: Codes | None = None
    zero_point: Tensor | None = None
    sparse: Sparse | None = None
    multiplier: Tensor | None = None

    @property
    def steps(self) -> Tensor:
        """The distance of neighbouring codes, float32: ``[1]``, ``[out]`` or ``[out, groups]``."""
        return self.scale if self.multiplier is None else self.scale[:, None] * self.multiplier

    @property
    def integers(self) -> Tensor:
        """The codes without their zero points, int8 ``[out, in]``: a weight is one of them times its step."""
        return self.codes if self.zero_point is None else self.codes - self._zero_points

    def at(self, integers: Tensor) -> Codes:
        """Return the codes with these integers, int8 ``[out, in]``, and the same steps and zero points."""
        return self._replace(codes=integers if self.zero_point is None else integers + self._zero_points)

    @property
    def _zero_points(self) -> Tensor:
        assert self.zero_point is not None
        return self.zero_point.repeat_interleave(self.codes.shape[1] // self.zero_point.shape[1], dim=1)


class Format(ABC):
    """One way to store and run a weight ``[out, in]``. Stateless; the layer holds the tensors.

    Attributes:
        name: of the format.
        refuses_codes: why an activation with codes cannot meet it; None where one can.
    """

    name: ClassVar[str]
    refuses_codes: ClassVar[str | None] = None

    def of(self, scheme: TensorScheme) -> Format:
        """Return the format for a scheme that it supports, knowing what `linear` needs of it; most need nothing."""
        return self

    @abstractmethod
    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether this format holds weights of the scheme."""

    @abstractmethod
    def tensors(self, shape: tuple[int, int], scheme: TensorScheme) -> dict[str, StoredTensor]:
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
