"""The float mixers against the papers' blocks, put together from naive implementations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmquant.modules.mamba1 import Mamba1Dims, Mamba1Mixer
from ssmquant.modules.mamba2 import Mamba2Dims, Mamba2Mixer
from ssmquant.tolerance import error_ratio

from ..ops import naive
from .build import ALL_DIMS, float_mixer, hidden_states


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def convolved(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    weight = weights["conv1d.weight"].squeeze(1)
    start = torch.zeros(x.shape[0], x.shape[2], weight.shape[1], dtype=x.dtype)
    y, _ = naive.causal_conv1d(x, None, weight, None, weights.get("conv1d.bias"), start, None)
    return y


def mamba1(d: Mamba1Dims, w: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Arxiv 2312.00752, section 3.4 and algorithm 2; Falcon-Mamba's norms on dt, B and C."""
    x, z = linear(hidden, w, "in_proj").chunk(2, dim=-1)
    x = convolved(x, w)
    dt, B, C = (x @ w["x_proj.weight"].T).split([d.dt_rank, d.d_state, d.d_state], dim=-1)
    if d.dt_B_C_eps is not None:
        dt, B, C = (t / (t.pow(2).mean(-1, keepdim=True) + d.dt_B_C_eps).sqrt() for t in (dt, B, C))
    dt = dt @ w["dt_proj.weight"].T
    start = torch.zeros(x.shape[0], d.d_inner, d.d_state, dtype=x.dtype)
    y, _ = naive.selective_scan(
        x, None, dt, None, -w["A_log"].exp(), B, None, C, None, w["D"], w["dt_proj.bias"], start, None, 0
    )
    return linear(naive.gate(y, z, None, False, None), w, "out_proj")


def mamba2(d: Mamba2Dims, w: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Arxiv 2405.21060, section 7: z, x, B, C and dt from one projection, a gated norm in groups."""
    states = d.ngroups * d.d_state
    z, xBC, dt = linear(hidden, w, "in_proj").split([d.d_inner, d.d_inner + 2 * states, d.nheads], dim=-1)
    x, B, C = convolved(xBC, w).split([d.d_inner, states, states], dim=-1)
    start = torch.zeros(x.shape[0], d.nheads, d.headdim, d.d_state, dtype=x.dtype)
    y, _ = naive.ssd(
        x.unflatten(-1, (d.nheads, d.headdim)), None, dt, None, -w["A_log"].exp(),
        B.unflatten(-1, (d.ngroups, d.d_state)), None, C.unflatten(-1, (d.ngroups, d.d_state)), None,
        w["D"], w["dt_bias"], d.dt_min, d.dt_max, start, None, 0,
    )  # fmt: skip
    group = d.d_inner // d.ngroups
    y = naive.gated_rms_norm(y.flatten(-2), z, None, w["norm.weight"], d.norm_eps, group, False, None)
    return linear(y, w, "out_proj")


@pytest.mark.parametrize("name", ALL_DIMS)
@torch.no_grad()
def test_a_float_mixer_is_the_papers_block(name: str) -> None:
    dims = ALL_DIMS[name]
    mixer, hidden = float_mixer(dims), hidden_states(dims, 2, 70)
    weights = {key: value.double() for key, value in mixer.state_dict().items()}
    if isinstance(dims, Mamba1Dims):
        assert isinstance(mixer, Mamba1Mixer)
        expected = mamba1(dims, weights, hidden.double())
    else:
        assert isinstance(mixer, Mamba2Mixer)
        expected = mamba2(dims, weights, hidden.double())
    # A whole mixer in float32: five sums one after the other, the class of test_mixers.
    assert error_ratio(mixer(hidden), expected) <= 1e-5
    # In float64 nothing but the order of sums is left.
    assert error_ratio(mixer.double()(hidden.double()), expected) <= 1e-12


@pytest.mark.parametrize("name", ALL_DIMS)
@torch.no_grad()
def test_the_transform_before_out_proj_can_be_folded_into_it(name: str) -> None:
    """Where the size has one: y H^T (H W^T) is y W^T, so a mixer that transforms y under folded weights is the same."""
    dims = ALL_DIMS[name]
    plain, turned = float_mixer(dims).double(), float_mixer(dims, hadamard=True).double()
    h = torch.from_numpy(naive.hadamard_matrix(dims.d_inner)).double() / dims.d_inner**0.5
    turned.out_proj.weight.copy_(plain.out_proj.weight @ h.T)
    hidden = hidden_states(dims, 2, 9).double()
    assert error_ratio(turned(hidden), plain(hidden)) <= 1e-12
    assert error_ratio(float_mixer(dims, hadamard=True).double()(hidden), plain(hidden)) > 0.1
