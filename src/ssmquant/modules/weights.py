"""Stages that hold a weight: linear layer, embedding, causal convolution, RMS norm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ssmquant.errors import RecipeError
from ssmquant.formats import format_for
from ssmquant.modules.activation import QTensor
from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.ops.int4_embedding import int4_embedding
from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.rms_norm import rms_norm
from ssmquant.scheme import TensorScheme

__all__ = ["CausalConv1d", "Embedding", "Linear", "RMSNorm", "Weight"]


class Weight(nn.Module):
    """Base of the stages with a quantisable weight: the stored tensors are parameters (float) or buffers (codes).

    Args:
        shape: ``(out, in)``.
        scheme: how the weight is stored.

    Raises:
        RecipeError: no format stores the scheme, or the stage cannot run the one that does.
    """

    formats: ClassVar[tuple[str, ...]] = ()  # names of those that the stage can run; none named: any
    weight: Tensor  # where the scheme is a float one

    def __init__(self, shape: tuple[int, int], scheme: TensorScheme) -> None:
        super().__init__()
        self.shape = shape
        self.scheme = scheme
        self.format = format_for(scheme)
        if self.formats and self.format.name not in self.formats:
            raise RecipeError(
                f"{type(self).__name__} cannot run weights of scheme {scheme.short()!r} (format {self.format.name}); "
                f"its formats are {', '.join(self.formats)}"
            )
        self.stored_names = tuple(self.format.tensors(shape, scheme))
        for name, spec in self.format.tensors(shape, scheme).items():
            empty = torch.empty(self._at_rest(spec.shape), dtype=spec.dtype)
            if scheme.is_float:
                self.register_parameter(name, nn.Parameter(empty))
            else:
                self.register_buffer(name, empty)

    def _at_rest(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape of a tensor that the format sees as ``shape``."""
        return shape

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored tensors by name, in the shapes that the format knows."""
        shapes = self.format.tensors(self.shape, self.scheme)
        return {name: getattr(self, name).view(spec.shape) for name, spec in shapes.items()}

    def dequantize(self) -> Tensor:
        """Return the float weight ``[out, in]``."""
        return self.format.dequantize(self.stored)

    def extra_repr(self) -> str:
        """Return shape and scheme."""
        return f"{self.shape[0]}, {self.shape[1]}, {self.scheme.short()}"


class Linear(Weight):
    """Linear layer ``[..., in] -> [..., out]``.

    Args:
        in_features: size of K.
        out_features: size of N.
        bias: whether there is a float bias ``[out]``.
        scheme: how the weight is stored.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, scheme: TensorScheme) -> None:
        super().__init__((out_features, in_features), scheme)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: QTensor, scale_out: Tensor | None = None) -> Tensor:
        """Return the float result, or its codes under ``scale_out``."""
        return self.format.linear(self.stored, x.data, x.scale, self.bias, scale_out)


class Embedding(Weight):
    """Table of token vectors ``[vocab, d_model]``; an int8 table has a scale a token, an int4 one a scale a group."""

    formats = ("dense", "int8", "int4")

    def forward(self, ids: Tensor) -> Tensor:
        """Return the float rows of ``ids`` (int64 ``[...]``): ``[..., d_model]``."""
        rows: Tensor
        if self.format.name == "int8":
            rows = int8_embedding(ids, self.stored["codes"], self.stored["scale"])
            return rows
        if self.format.name == "int4":
            rows = int4_embedding(ids, self.stored["packed"], self.stored["scale"])
            return rows
        rows = nn.functional.embedding(ids, self.stored["weight"])
        return rows.to(torch.promote_types(rows.dtype, torch.float32))


class CausalConv1d(Weight):
    """Depthwise causal convolution with SiLU over ``[B, L, channels]``; stored ``[channels, 1, d_conv]``.

    Args:
        channels: d_inner, with B and C for Mamba-2.
        taps: d_conv.
        bias: whether there is a float bias.
        scheme: how the weight is stored.
    """

    formats = ("dense", "int8")

    def __init__(self, channels: int, taps: int, *, bias: bool, scheme: TensorScheme) -> None:
        super().__init__((channels, taps), scheme)
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def _at_rest(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], 1, shape[1]) if len(shape) == 2 else shape

    def forward(self, x: QTensor, state: Tensor, scale_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the result and the new state; ``state`` is ``[B, channels, d_conv]`` in the dtype of x's data."""
        if self.scheme.is_float:
            weight, weight_scale = self.stored["weight"], None
        else:
            weight, weight_scale = self.stored["codes"], self.stored["scale"]
        y, state = causal_conv1d(x.data, x.scale, weight, weight_scale, self.bias, state, scale_out)
        return y, state


class RMSNorm(nn.Module):
    """RMS norm over the last dimension; float32 inside and out.

    Args:
        channels: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.eps = eps

    def forward(self, x: Tensor, scale_out: Tensor | None = None) -> Tensor:
        """Return the normalised float tensor ``[..., C]``, or its codes under ``scale_out``."""
        y: Tensor = rms_norm(x, self.weight, self.eps, scale_out)
        return y
