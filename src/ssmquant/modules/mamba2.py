"""`Mamba2Mixer`: the Mamba-2 block (arXiv 2405.21060, section 7), every precision, prefill and decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ssmquant.modules.activation import QTensor, concatenate, emit
from ssmquant.modules.mixer import FLOAT_LAYER, LayerSchemes, Mixer
from ssmquant.modules.state import MixerState
from ssmquant.modules.weights import CausalConv1d, Linear
from ssmquant.ops.gated_rms_norm import gated_rms_norm
from ssmquant.ops.ssd import ssd
from ssmquant.sites import Site, SiteKind, activation_site, weight_site

__all__ = ["Mamba2Dims", "Mamba2Mixer", "mamba2_sites"]


@dataclass(frozen=True)
class Mamba2Dims:
    """Sizes and constants of a Mamba-2 mixer, in the field's names."""

    d_model: int
    d_inner: int
    d_state: int
    d_conv: int
    nheads: int
    headdim: int
    ngroups: int
    dt_min: float
    dt_max: float
    norm_eps: float
    bias: bool
    conv_bias: bool

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_inner + 2 * self.ngroups * self.d_state

    @property
    def d_in_proj(self) -> int:
        """Rows of in_proj: z, x, B, C, dt."""
        return self.d_inner + self.conv_dim + self.nheads


def mamba2_sites(dims: Mamba2Dims) -> tuple[Site, ...]:
    """Return the quantisable tensors of one mixer, in the order of the data flow."""
    heads = {"ngroups": dims.ngroups, "heads": dims.nheads // dims.ngroups}
    inner = heads | {"headdim": dims.headdim}
    group = {"ngroups": dims.ngroups, "d_state": dims.d_state}

    return (
        activation_site("hidden", {"d_model": dims.d_model}, "norm", "in_proj"),
        weight_site("in_proj", dims.d_in_proj, dims.d_model),
        activation_site("z", inner, "in_proj", "gated_norm"),
        activation_site("x_in", inner, "in_proj", "conv1d"),
        activation_site("B_in", group, "in_proj", "conv1d"),
        activation_site("C_in", group, "in_proj", "conv1d"),
        activation_site("dt", heads, "in_proj", "scan"),
        weight_site("conv1d", dims.conv_dim, dims.d_conv),
        activation_site("x", inner, "conv1d", "scan"),
        activation_site("B", group, "conv1d", "scan"),
        activation_site("C", group, "conv1d", "scan"),
        Site("state", SiteKind.STATE, inner | {"d_state": dims.d_state}, "scan", ("scan",)),
        activation_site("y", {"d_inner": dims.d_inner}, "gated_norm", "out_proj"),
        weight_site("out_proj", dims.d_model, dims.d_inner),
    )


class GatedNorm(nn.Module):
    """Gain of the gated norm ``[d_inner]``.

    Args:
        channels: d_inner.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))


class Mamba2Mixer(Mixer):
    """Mamba-2 mixer ``[B, L, d_model] -> [B, L, d_model]``.

    Args:
        dims: sizes.
        layer: what the plan says of this layer; float by default.
    """

    def __init__(self, dims: Mamba2Dims, layer: LayerSchemes = FLOAT_LAYER) -> None:
        super().__init__()
        self.dims = dims
        self.hadamard = layer.hadamard
        self.act, self.state = self.add_sites(mamba2_sites(dims), layer)
        self.in_proj = Linear(dims.d_model, dims.d_in_proj, bias=dims.bias, scheme=layer["in_proj.weight"])
        self.conv1d = CausalConv1d(
            dims.conv_dim, dims.d_conv, bias=dims.conv_bias, scheme=layer["conv1d.weight"]
        )
        self.dt_bias = nn.Parameter(torch.empty(dims.nheads))
        self.A_log = nn.Parameter(torch.empty(dims.nheads))
        self.D = nn.Parameter(torch.empty(dims.nheads))
        self.norm = GatedNorm(dims.d_inner)
        self.out_proj = Linear(dims.d_inner, dims.d_model, bias=dims.bias, scheme=layer["out_proj.weight"])

    def initial_state(self, batch: int, dtype: torch.dtype) -> MixerState:
        """Return the state before the first token (zeros)."""
        d = self.dims
        device = self.A_log.device
        codes = all(self.site(name).scheme.is_static_int for name in ("x_in", "B_in", "C_in"))
        conv = torch.zeros(batch, d.conv_dim, d.d_conv, dtype=torch.int8 if codes else dtype, device=device)
        ssm_dtype = self.state.dtype if self.state.dtype != torch.float32 else dtype
        return MixerState(
            conv, torch.zeros(batch, d.nheads, d.headdim, d.d_state, dtype=ssm_dtype, device=device)
        )

    def mix(self, hidden: Tensor, state: MixerState | None = None) -> Tensor:
        """Return the mixer's output; see `Mixer.mix`."""
        state = state or self.initial_state(hidden.shape[0], hidden.dtype)
        projected = self.site("hidden")(hidden)
        segments = [self.site(name) for name in ("z", "x_in", "B_in", "C_in", "dt")]
        z, x, B, C, dt = emit(segments, lambda scale_out: self.in_proj(projected, scale_out))
        x, B, C = self.convolve(x, B, C, state)
        y = self.scan(x, B, C, dt, state)
        (normed,) = emit([self.site("y")], lambda scale_out: self.gated_norm(y, z, scale_out))
        return cast(Tensor, self.out_proj(normed))

    def convolve(self, x: QTensor, B: QTensor, C: QTensor, state: MixerState) -> list[QTensor]:
        """Return x, B and C after the convolution and SiLU."""
        inputs = concatenate([x, B, C])

        def stage(scale_out: Tensor | None) -> Tensor:
            y: Tensor
            y, state.conv = self.conv1d(inputs, state.conv, scale_out)
            return y

        return emit([self.site(name) for name in ("x", "B", "C")], stage)

    def scan(self, x: QTensor, B: QTensor, C: QTensor, dt: QTensor, state: MixerState) -> Tensor:
        """Return the scan's output ``[B, L, d_inner]``, float."""
        d = self.dims

        def run(
            inputs: Sequence[QTensor], ssm: Tensor, state_scale: Tensor | None, interval: int
        ) -> tuple[Tensor, Tensor]:
            x, B, C, dt = (t.for_elementwise() for t in inputs)
            y, ssm = ssd(
                x.data.unflatten(-1, (d.nheads, d.headdim)), x.scale,
                dt.data, dt.scale,
                -torch.exp(self.A_log),
                B.data.unflatten(-1, (d.ngroups, d.d_state)), B.scale,
                C.data.unflatten(-1, (d.ngroups, d.d_state)), C.scale,
                self.D, self.dt_bias, d.dt_min, d.dt_max, ssm, state_scale, interval,
            )  # fmt: skip
            return y.flatten(-2), ssm

        return self.run_scan(run, (x, B, C, dt), state)

    def gated_norm(self, y: Tensor, z: QTensor, scale_out: Tensor | None) -> Tensor:
        """Return the gated norm of y, transformed if the layer is, ``[B, L, d_inner]``."""
        d = self.dims
        z = z.for_elementwise()
        group_size = d.d_inner // d.ngroups
        normed: Tensor = gated_rms_norm(
            y, z.data, z.scale, self.norm.weight, d.norm_eps, group_size, self.hadamard, scale_out
        )
        return normed
