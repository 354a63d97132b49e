"""The float16 baseline of `gpu.py`: mamba_ssm's Triton kernels, cuBLAS, and CUDA graphs.

The kernels are read from an unpacked source distribution of mamba-ssm (Apache 2.0), which is no part of this
repository: scans, state update, and the norms with their fused additions and gates. Its package builds CUDA extensions
for two things more. For the causal convolution our Triton kernel stands in, on float16; Mamba-1's scan of a prompt has
no Triton kernel, so of Mamba-1 only steps are measured. Layers, states (float16) and the residual (float32) are as
mamba_ssm runs them; weights are random.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from gpu_models import DEVICE, Shape
from torch import Tensor
from torch.nn.functional import linear

from ssmquant.ops.causal_conv1d.triton import convolve_into_ring

__all__ = ["prompt", "step", "use_mamba_ssm"]

_CHUNK = 256
_RANK = 160  # of dt in Mamba-1's shape
Weights = dict[str, Tensor]


def use_mamba_ssm(folder: Path) -> None:
    """Let `step` and `prompt` find mamba_ssm's Triton kernels.

    Args:
        folder: the unpacked source distribution, with ``mamba_ssm`` inside.
    """
    package = ModuleType("mamba_ssm")  # without its __init__, which needs the CUDA extensions
    package.__path__ = [str(folder / "mamba_ssm")]
    sys.modules["mamba_ssm"] = package


def _weights(shape: Shape) -> Weights:
    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, device=DEVICE) * scale).half()

    inner = shape.d_inner
    weights = {
        "gain": torch.ones(shape.d_model, device=DEVICE).half(),
        "w_in": normal(shape.d_in_proj, shape.d_model, scale=shape.d_model**-0.5),
        "conv": normal(shape.conv_dim, 4, scale=0.5),
        "bias": normal(shape.conv_dim, scale=0.1),
        "w_out": normal(shape.d_model, inner, scale=0.2 * inner**-0.5),
    }
    if shape.kind == "mamba1":
        return weights | {
            "w_x": normal(_RANK + 2 * shape.d_state, inner, scale=inner**-0.5),
            "w_dt": normal(inner, _RANK, scale=_RANK**-0.5),
            "dt_bias": torch.empty(inner, device=DEVICE).uniform_(-6.0, -2.0),
            "A": -torch.arange(1, shape.d_state + 1, device=DEVICE).float().repeat(inner, 1),
            "D": torch.ones(inner, device=DEVICE),
        }
    return weights | {
        "dt_bias": torch.empty(shape.heads, device=DEVICE).uniform_(-6.0, -2.0),
        "A": -torch.empty(shape.heads, device=DEVICE).uniform_(1.0, 16.0),
        "D": torch.ones(shape.heads, device=DEVICE),
        "gated": torch.ones(inner, device=DEVICE).half(),
    }


def _convolve(x: Tensor, kept: Tensor, w: Weights) -> Tensor:
    """Return the convolution of tokens ``[B, L, C]`` and SiLU; ``kept [B, 4, C]`` has the newest inputs."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = torch.arange(len(x), dtype=torch.int32, device=x.device)
    # A step finds three tokens before its own, a prompt none.
    positions = torch.full((len(x),), 4 if x.shape[1] == 1 else 0, dtype=torch.int32, device=x.device)
    convolve_into_ring(x, None, w["conv"], None, w["bias"], kept, kept, rows, positions, None, out)  # type: ignore[arg-type]
    return out


def _layer_step(hidden: Tensor, kept: Tensor, state: Tensor, w: Weights, shape: Shape) -> Tensor:
    """Return a layer's result, float16 ``[M, d_model]``, of its normed input."""
    from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    inner, groups, d_state = shape.d_inner, shape.groups, shape.d_state
    projected = linear(hidden, w["w_in"])
    if shape.kind == "mamba1":
        x, z = projected.chunk(2, dim=-1)
        x = _convolve(x[:, None], kept, w)[:, 0]
        dt, b, c = linear(x, w["w_x"]).split([_RANK, d_state, d_state], dim=-1)
        y = selective_state_update(
            state, x, linear(dt, w["w_dt"]), w["A"], b, c, w["D"], z=z, dt_bias=w["dt_bias"], dt_softplus=True
        )
        return linear(y, w["w_out"])
    z, x_b_c, dt = projected.split([inner, shape.conv_dim, shape.heads], dim=-1)
    x_b_c = _convolve(x_b_c[:, None], kept, w)[:, 0]
    x, b, c = x_b_c.split([inner, groups * d_state, groups * d_state], dim=-1)
    heads, width = shape.heads, shape.headdim
    y = selective_state_update(
        state, x.view(-1, heads, width), dt[:, :, None].expand(-1, -1, width),
        w["A"][:, None, None].expand(-1, width, d_state), b.view(-1, groups, d_state), c.view(-1, groups, d_state),
        w["D"][:, None].expand(-1, width), z=None, dt_bias=w["dt_bias"][:, None].expand(-1, width), dt_softplus=True,
    )  # fmt: skip
    y = rmsnorm_fn(
        y.reshape(-1, inner),
        w["gated"],
        None,
        z=z,
        eps=1e-5,
        group_size=inner // groups,
        norm_before_gate=False,
    )
    return linear(y, w["w_out"])


def _layer_prompt(hidden: Tensor, kept: Tensor, w: Weights, shape: Shape) -> Tensor:
    from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    inner, groups, d_state = shape.d_inner, shape.groups, shape.d_state
    z, x_b_c, dt = linear(hidden, w["w_in"]).split([inner, shape.conv_dim, shape.heads], dim=-1)
    x_b_c = _convolve(x_b_c, kept, w)
    x, b, c = x_b_c.split([inner, groups * d_state, groups * d_state], dim=-1)
    y, _ = mamba_chunk_scan_combined(
        x.unflatten(-1, (shape.heads, shape.headdim)), dt, w["A"], b.unflatten(-1, (groups, d_state)),
        c.unflatten(-1, (groups, d_state)), chunk_size=_CHUNK, D=w["D"], z=None, dt_bias=w["dt_bias"],
        dt_softplus=True, return_final_states=True,
    )  # fmt: skip
    y = rmsnorm_fn(
        y.flatten(-2), w["gated"], None, z=z, eps=1e-5, group_size=inner // groups, norm_before_gate=False
    )
    return linear(y, w["w_out"])


def _captured(run: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph


def _run(ids: Tensor, layers: list[Weights], table: Tensor, mix: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Run layers over tokens; return the logits of the last one of each row."""
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

    def normed(hidden: Tensor, residual: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
        pair: tuple[Any, Any] = rms_norm_fn(
            hidden, gain, None, residual=residual, eps=1e-5, prenorm=True, residual_in_fp32=True
        )
        return pair

    hidden, residual = table[ids], None
    for index, w in enumerate(layers):
        hidden, residual = normed(hidden, residual, w["gain"])
        hidden = mix(index, hidden)
    if ids.dim() == 2:
        assert residual is not None
        hidden, residual = hidden[:, -1].contiguous(), residual[:, -1].contiguous()
    return linear(normed(hidden, residual, layers[0]["gain"])[0], table)


def _model(shape: Shape) -> tuple[list[Weights], Tensor]:
    table = (0.02 * torch.randn(shape.vocab, shape.d_model, device=DEVICE)).half()
    return [_weights(shape) for _ in range(shape.layers)], table


@torch.no_grad()
def step(shape: Shape, rows: int) -> torch.cuda.CUDAGraph:
    """Return the captured step of a batch."""
    layers, table = _model(shape)
    kept = torch.randn(shape.layers, rows, 4, shape.conv_dim, device=DEVICE).half()
    of_row = (shape.heads, shape.headdim) if shape.kind == "mamba2" else (shape.d_inner,)
    state = torch.empty(
        shape.layers, rows, *of_row, shape.d_state, device=DEVICE, dtype=torch.float16
    ).normal_()
    ids = torch.randint(0, shape.vocab, (rows,), device=DEVICE)
    return _captured(
        lambda: _run(ids, layers, table, lambda i, h: _layer_step(h, kept[i], state[i], layers[i], shape))
    )


@torch.no_grad()
def prompt(shape: Shape, batch: int, length: int) -> torch.cuda.CUDAGraph:
    """Return the captured reading of prompts (Mamba-2)."""
    layers, table = _model(shape)
    kept = torch.empty(batch, 4, shape.conv_dim, device=DEVICE, dtype=torch.float16)
    ids = torch.randint(0, shape.vocab, (batch, length), device=DEVICE)
    return _captured(lambda: _run(ids, layers, table, lambda i, h: _layer_prompt(h, kept, layers[i], shape)))
