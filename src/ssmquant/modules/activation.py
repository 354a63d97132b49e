"""`Activation`: the place of one activation site, and `QTensor`, what travels between stages.

A float site passes tensors through (and shows them to observers as its forward hooks see them); an int8 site returns
codes with their scale, static or found for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.ops.quantize import quantize_per_token, quantize_static
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["Activation", "QTensor", "check_scheme", "concatenate", "emit", "scale_shape"]


class QTensor(NamedTuple):
    """An activation on its way: int8 codes ``[..., C]`` with their scale, or a float tensor without one.

    Attributes:
        data: int8 codes or float.
        scale: float32 ``[1]``, ``[C]`` (static) or ``[..., 1]`` (one a token); None for a float.
    """

    data: Tensor
    scale: Tensor | None

    def dequantize(self) -> Tensor:
        """Return the float tensor that it stands for."""
        return numerics.dequantize(self.data, self.scale)

    def for_elementwise(self) -> QTensor:
        """Return itself, or floats when the scales are a token's: scans and gates take static scales."""
        return self if self.scale is None or self.scale.dim() == 1 else QTensor(self.dequantize(), None)

    def tokens(self, start: int, stop: int | None = None) -> QTensor:
        """Return some tokens of ``[B, L, …]``; a static scale is shared."""
        scale = self.scale
        return QTensor(
            self.data[:, start:stop], scale if scale is None or scale.dim() == 1 else scale[:, start:stop]
        )

    def alone(self) -> QTensor:
        """Return the same in memory of its own: a part of a long sequence would keep all of it in memory."""
        scale = self.scale
        return QTensor(_alone(self.data), scale if scale is None or scale.dim() == 1 else _alone(scale))


def _alone(x: Tensor) -> Tensor:
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def check_scheme(dims: Mapping[str, int], scheme: TensorScheme) -> None:
    """Raise unless an activation site of these dimensions can have the scheme.

    Raises:
        RecipeError: it is none of float32, static int8 and dynamic codes, or its scales have no meaning here.
    """
    static = scheme.is_static_int and scheme.bits == 8
    dynamic = scheme.kind == "int" and scheme.dynamic
    known = scheme.bits == 32 if scheme.is_float else scheme.symmetric and (static or dynamic)
    if not known or scheme.interval:
        raise RecipeError(
            f"{scheme.short()!r} has no meaning for an activation{'' if scheme.symmetric else ' with a zero point'}; "
            "have float32, static int8 and dynamic per-token codes, all symmetric"
        )
    if static:
        scale_shape(dims, scheme)


def scale_shape(dims: Mapping[str, int], scheme: TensorScheme) -> tuple[int, ...]:
    """Return the shape of an activation site's stored scales.

    Raises:
        RecipeError: the granularity has no meaning for this site.
    """
    groups, channels = dims.get("ngroups", 1), prod(dims.values())
    match scheme.granularity:
        case Granularity.PER_TENSOR:
            return (1,)
        case Granularity.PER_CHANNEL:
            return (channels,)
        case Granularity.PER_STATE_GROUP if "d_state" in dims:
            return (groups,)
        case Granularity.PER_HEAD_GROUP if "heads" in dims and scheme.head_groups and scheme.channel_groups:
            clusters = min(scheme.head_groups, dims["heads"]) * min(
                scheme.channel_groups, dims.get("headdim", 1)
            )
            return (groups * clusters,)
    raise RecipeError(
        f"{scheme.granularity} scales have no meaning for an activation of dimensions {dict(dims)}"
    )


class Activation(nn.Module):
    """One activation site.

    Args:
        dims: name and size of the channel dimensions (see `Site.dims`).
        scheme: float, static int8 or dynamic int8.
    """

    scale: Tensor
    group: Tensor

    def __init__(self, dims: Mapping[str, int], scheme: TensorScheme) -> None:
        super().__init__()
        self.dims = dict(dims)
        self.scheme = scheme
        self.channels = prod(dims.values())
        check_scheme(dims, scheme)
        if scheme.is_static_int:
            self.register_buffer("scale", torch.empty(scale_shape(dims, scheme), dtype=torch.float32))
            if scheme.granularity in (Granularity.PER_HEAD_GROUP, Granularity.PER_STATE_GROUP):
                # Which scale each channel has: the groups of one layer are found by calibration.
                self.register_buffer("group", torch.empty(self.channels, dtype=torch.int16))

    @property
    def static_scale(self) -> Tensor | None:
        """Static scale ``[1]`` or ``[C]`` (groups written out a channel), None for a float or dynamic site."""
        if not self.scheme.is_static_int:
            return None
        return self.scale[self.group.long()] if "group" in self._buffers else self.scale

    def forward(self, x: Tensor) -> QTensor:
        """Return ``x`` (float ``[..., C]``) as this site holds it."""
        scale = self.static_scale
        if scale is not None:
            return QTensor(quantize_static(x, scale), scale)
        if self.scheme.is_float:
            return QTensor(x, None)
        return QTensor(*quantize_per_token(x, self.scheme.bits))

    def extra_repr(self) -> str:
        """Return channels and scheme."""
        return f"{self.channels}, {self.scheme.short()}"


def emit(sites: Sequence[Activation], stage: Callable[[Tensor | None], Tensor]) -> list[QTensor]:
    """Run a stage that writes several sites side by side, quantised inside the stage where all of them are static.

    An op with ``scale_out`` equals the op without it followed by quantisation, so both ways give the same codes.

    Args:
        sites: the sites, in the order of the stage's output channels.
        stage: from ``scale_out`` (``[1]``, ``[C]`` or None) to the stage's output ``[..., C]``.
    """
    scales = [site.static_scale for site in sites]
    widths = [site.channels for site in sites]
    static = [scale for scale in scales if scale is not None]
    if len(static) < len(sites):
        return [site(part) for site, part in zip(sites, stage(None).split(widths, dim=-1), strict=True)]
    scale_out = static[0] if len(sites) == 1 else _written_out(static, widths)
    parts = stage(scale_out).split(widths, dim=-1)
    return [QTensor(part, scale) for part, scale in zip(parts, static, strict=True)]


def concatenate(parts: Sequence[QTensor]) -> QTensor:
    """Join activations along the channels: codes when all have static scales, floats otherwise."""
    scales = [part.scale for part in parts if part.scale is not None and part.scale.dim() == 1]
    if len(scales) < len(parts):
        return QTensor(torch.cat([part.dequantize() for part in parts], dim=-1), None)
    widths = [part.data.shape[-1] for part in parts]
    return QTensor(torch.cat([part.data for part in parts], dim=-1), _written_out(scales, widths))


def _written_out(scales: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    return torch.cat([scale.expand(width) for scale, width in zip(scales, widths, strict=True)])
