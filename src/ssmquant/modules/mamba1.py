"""`Mamba1Mixer`: the Mamba block (arXiv 2312.00752, section 3.4), every precision, prefill and decode."""

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
from ssmquant.ops.gate import gate
from ssmquant.ops.rms_norm.reference import normalize
from ssmquant.ops.selective_scan import selective_scan
from ssmquant.sites import Site, SiteKind, activation_site, weight_site

__all__ = ["Mamba1Dims", "Mamba1Mixer", "mamba1_sites"]


@dataclass(frozen=True)
class Mamba1Dims:
    """Sizes and constants of a Mamba-1 mixer, in the field's names.

    ``dt_B_C_eps`` is None, or the eps of gainless RMS norms on dt, B and C (Falcon-Mamba).
    """

    d_model: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    bias: bool
    conv_bias: bool
    dt_B_C_eps: float | None = None


def mamba1_sites(dims: Mamba1Dims) -> tuple[Site, ...]:
    """Return the quantisable tensors of one mixer, in the order of the data flow."""
    inner = {"d_inner": dims.d_inner}
    states = {"d_state": dims.d_state}

    return (
        activation_site("hidden", {"d_model": dims.d_model}, "norm", "in_proj"),
        weight_site("in_proj", 2 * dims.d_inner, dims.d_model),
        activation_site("x_in", inner, "in_proj", "conv1d"),
        activation_site("z", inner, "in_proj", "gate"),
        weight_site("conv1d", dims.d_inner, dims.d_conv),
        activation_site("x", inner, "conv1d", "x_proj", "scan"),
        weight_site("x_proj", dims.dt_rank + 2 * dims.d_state, dims.d_inner),
        activation_site("dt_in", {"dt_rank": dims.dt_rank}, "x_proj", "dt_proj"),
        activation_site("B", states, "x_proj", "scan"),
        activation_site("C", states, "x_proj", "scan"),
        weight_site("dt_proj", dims.d_inner, dims.dt_rank),
        activation_site("dt", inner, "dt_proj", "scan"),
        Site("state", SiteKind.STATE, inner | states, "scan", ("scan",)),
        activation_site("y", inner, "gate", "out_proj"),
        weight_site("out_proj", dims.d_model, dims.d_inner),
    )


class Mamba1Mixer(Mixer):
    """Mamba-1 mixer ``[B, L, d_model] -> [B, L, d_model]``.

    Args:
        dims: sizes.
        layer: what the plan says of this layer; float by default.
    """

    def __init__(self, dims: Mamba1Dims, layer: LayerSchemes = FLOAT_LAYER) -> None:
        super().__init__()
        self.dims = dims
        self.hadamard = layer.hadamard
        self.act, self.state = self.add_sites(mamba1_sites(dims), layer)
        inner, projected = dims.d_inner, dims.dt_rank + 2 * dims.d_state
        self.in_proj = Linear(dims.d_model, 2 * inner, bias=dims.bias, scheme=layer["in_proj.weight"])
        self.conv1d = CausalConv1d(inner, dims.d_conv, bias=dims.conv_bias, scheme=layer["conv1d.weight"])
        self.x_proj = Linear(inner, projected, bias=False, scheme=layer["x_proj.weight"])
        # The bias of dt_proj is dt_bias: it enters in the scan, after dt's quantisation.
        self.dt_proj = Linear(dims.dt_rank, inner, bias=True, scheme=layer["dt_proj.weight"])
        self.A_log = nn.Parameter(torch.empty(inner, dims.d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = Linear(inner, dims.d_model, bias=dims.bias, scheme=layer["out_proj.weight"])

    def initial_state(self, batch: int, dtype: torch.dtype) -> MixerState:
        """Return the state before the first token (zeros)."""
        d, device = self.dims, self.A_log.device
        conv_dtype = torch.int8 if self.site("x_in").scheme.is_static_int else dtype
        ssm_dtype = self.state.dtype if self.state.dtype != torch.float32 else dtype
        return MixerState(
            torch.zeros(batch, d.d_inner, d.d_conv, dtype=conv_dtype, device=device),
            torch.zeros(batch, d.d_inner, d.d_state, dtype=ssm_dtype, device=device),
        )

    def mix(self, hidden: Tensor, state: MixerState | None = None) -> Tensor:
        """Return the mixer's output; see `Mixer.mix`."""
        state = state or self.initial_state(hidden.shape[0], hidden.dtype)
        projected = self.site("hidden")(hidden)
        segments = [self.site(name) for name in ("x_in", "z")]
        x_in, z = emit(segments, lambda scale_out: self.in_proj(projected, scale_out))
        x = self.convolve(x_in, state)
        dt_in, B, C = self.select(x)
        (dt,) = emit([self.site("dt")], lambda scale_out: self.project_dt(dt_in, scale_out))
        y = self.scan(x, B, C, dt, state)
        (gated,) = emit([self.site("y")], lambda scale_out: self.gate(y, z, scale_out))
        return cast(Tensor, self.out_proj(gated))

    def convolve(self, x_in: QTensor, state: MixerState) -> QTensor:
        """Return x after the convolution and SiLU."""
        inputs = concatenate([x_in])

        def stage(scale_out: Tensor | None) -> Tensor:
            y: Tensor
            y, state.conv = self.conv1d(inputs, state.conv, scale_out)
            return y

        (x,) = emit([self.site("x")], stage)
        return x

    def select(self, x: QTensor) -> list[QTensor]:
        """Return the low-rank dt, B and C, normalised where the family does."""
        sites = [self.site(name) for name in ("dt_in", "B", "C")]
        if self.dims.dt_B_C_eps is None:
            return emit(sites, lambda scale_out: self.x_proj(x, scale_out))
        parts = self.x_proj(x).split([site.channels for site in sites], dim=-1)
        return [site(normalize(part, self.dims.dt_B_C_eps)) for site, part in zip(sites, parts, strict=True)]

    def project_dt(self, dt_in: QTensor, scale_out: Tensor | None) -> Tensor:
        """Return dt before bias and softplus, ``[B, L, d_inner]``."""
        proj = self.dt_proj
        return proj.format.linear(proj.stored, dt_in.data, dt_in.scale, None, scale_out)

    def scan(self, x: QTensor, B: QTensor, C: QTensor, dt: QTensor, state: MixerState) -> Tensor:
        """Return the scan's output ``[B, L, d_inner]``, float."""

        def run(
            inputs: Sequence[QTensor], ssm: Tensor, state_scale: Tensor | None, interval: int
        ) -> tuple[Tensor, Tensor]:
            x, B, C, dt = (t.for_elementwise() for t in inputs)
            y, ssm = selective_scan(
                x.data, x.scale, dt.data, dt.scale, -torch.exp(self.A_log), B.data, B.scale, C.data, C.scale,
                self.D, self.dt_proj.bias, ssm, state_scale, interval,
            )  # fmt: skip
            return y, ssm

        return self.run_scan(run, (x, B, C, dt), state)

    def gate(self, y: Tensor, z: QTensor, scale_out: Tensor | None) -> Tensor:
        """Return the gated y, transformed if the layer is, ``[B, L, d_inner]``."""
        z = z.for_elementwise()
        gated: Tensor = gate(y, z.data, z.scale, self.hadamard, scale_out)
        return gated
