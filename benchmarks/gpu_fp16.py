"""The float16 baseline of `gpu.py`: Mamba-2 with cuBLAS projections, everything between compiled by torch.compile.

mamba_ssm's Triton kernels are not part of PyTorch and cannot be fetched where the benchmark runs; this is the best that
a plain PyTorch install gives. Arithmetic and states are those of mamba_ssm's float16 inference: states float16, the
residual float32, scans in float32 with float16 products in prefill (state-space duality in chunks of 256, arXiv
2405.21060, listing 1). Steps and prompts run as CUDA graphs, as ours do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_models import DEVICE, Shape
from torch import Tensor
from torch.nn.functional import linear, pad, silu, softplus

__all__ = ["prompt", "step"]

_CHUNK = 256


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * gain).half()


def _weights(shape: Shape) -> dict[str, Tensor]:
    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, device=DEVICE) * scale).half()

    return {
        "gain": torch.ones(shape.d_model, device=DEVICE),
        "w_in": normal(shape.d_in_proj, shape.d_model, scale=shape.d_model**-0.5),
        "conv": normal(shape.conv_dim, 4, scale=0.5),
        "bias": normal(shape.conv_dim, scale=0.1),
        "dt_bias": torch.empty(shape.heads, device=DEVICE).uniform_(-6.0, -2.0),
        "A": -torch.empty(shape.heads, device=DEVICE).uniform_(1.0, 16.0),
        "D": torch.ones(shape.heads, device=DEVICE),
        "gated": torch.ones(shape.d_inner, device=DEVICE),
        "w_out": normal(shape.d_model, shape.d_inner, scale=0.2 * shape.d_inner**-0.5),
    }


def _finish(residual: Tensor, y: Tensor, z: Tensor, w: dict[str, Tensor], groups: int) -> Tensor:
    gated = y * silu(z.float())
    grouped = gated.unflatten(-1, (groups, -1))
    grouped = grouped * torch.rsqrt(grouped.pow(2).mean(-1, keepdim=True) + 1e-5)
    return residual + linear((grouped.flatten(-2) * w["gated"]).half(), w["w_out"])


def _layer_step(residual: Tensor, conv: Tensor, state: Tensor, w: dict[str, Tensor], shape: Shape) -> Tensor:
    inner, groups = shape.d_inner, shape.groups
    z, x_b_c, dt = linear(_norm(residual, w["gain"]), w["w_in"]).split(
        [inner, shape.conv_dim, shape.heads], dim=-1
    )
    conv.copy_(torch.cat([conv[:, :, 1:], x_b_c[:, :, None]], dim=2))
    x_b_c = silu((conv.float() * w["conv"].float()).sum(-1) + w["bias"].float())
    x, b, c = x_b_c.split([inner, groups * shape.d_state, groups * shape.d_state], dim=-1)
    steps = softplus(dt.float() + w["dt_bias"])
    x = x.view(-1, groups, shape.heads // groups, shape.headdim)
    steps = steps.view(-1, groups, shape.heads // groups)
    decay = torch.exp(steps * w["A"].view(groups, -1))
    b, c = b.view(-1, groups, 1, 1, shape.d_state), c.view(-1, groups, 1, 1, shape.d_state)
    h = state.view(-1, groups, shape.heads // groups, shape.headdim, shape.d_state).float()
    h = h * decay[..., None, None] + (steps[..., None] * x)[..., None] * b
    state.copy_(h.view(state.shape))
    y = (h * c).sum(-1) + w["D"].view(groups, -1)[..., None] * x
    return _finish(residual, y.flatten(1), z, w, groups)


def _layer_prompt(residual: Tensor, w: dict[str, Tensor], shape: Shape) -> Tensor:
    batch, length, _ = residual.shape
    inner, groups, chunk = shape.d_inner, shape.groups, min(_CHUNK, length)
    z, x_b_c, dt = linear(_norm(residual, w["gain"]), w["w_in"]).split(
        [inner, shape.conv_dim, shape.heads], dim=-1
    )
    padded = pad(x_b_c, (0, 0, 3, 0)).float()
    x_b_c = sum(padded[:, tap : tap + length] * w["conv"][:, tap].float() for tap in range(4))
    x_b_c = silu(x_b_c + w["bias"].float()).half()
    x, b, c = x_b_c.split([inner, groups * shape.d_state, groups * shape.d_state], dim=-1)
    of_group = shape.heads // groups
    x = x.reshape(batch, -1, chunk, groups, of_group, shape.headdim)
    b = b.reshape(batch, -1, chunk, groups, shape.d_state)
    c = c.reshape(batch, -1, chunk, groups, shape.d_state)
    steps = softplus(dt.float() + w["dt_bias"]).reshape(batch, -1, chunk, groups, of_group)
    decay = (steps * w["A"].view(groups, of_group)).cumsum(2)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=residual.device).tril()
    between = torch.where(
        causal[:, :, None, None], decay[:, :, :, None] - decay[:, :, None], -torch.inf
    ).exp()  # [B, chunks, T, S, G, H]
    scores = torch.einsum("bntgs,bnugs->bntug", c, b)
    weights = (scores[..., None] * between * steps[:, :, None]).half()
    y = torch.einsum("bntugh,bnughp->bntghp", weights, x)
    to_end = ((decay[:, :, -1:] - decay).exp() * steps).half()
    local = torch.einsum("bntghp,bntgs->bnghps", x * to_end[..., None], b).float()
    total = decay[:, :, -1].exp()
    h, states = torch.zeros_like(local[:, 0]), []
    for index in range(local.shape[1]):
        states.append(h)
        h = h * total[:, index, ..., None, None] + local[:, index]
    before = torch.stack(states, dim=1).half()
    y = y + torch.einsum("bntgs,bnghps->bntghp", c, before) * decay.exp()[..., None]
    y = y + w["D"].view(groups, of_group)[..., None] * x
    return _finish(residual, y.reshape(batch, length, inner).float(), z, w, groups)


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


def _head(shape: Shape) -> Tensor:
    return (0.02 * torch.randn(shape.vocab, shape.d_model, device=DEVICE)).half()


@torch.no_grad()
def step(shape: Shape, rows: int) -> torch.cuda.CUDAGraph:
    """Return the captured step of a batch."""
    layers = [_weights(shape) for _ in range(shape.layers)]
    table = _head(shape)
    conv = torch.randn(shape.layers, rows, shape.conv_dim, 4, device=DEVICE).half()
    state = torch.zeros(
        shape.layers, rows, shape.heads, shape.headdim, shape.d_state, device=DEVICE, dtype=torch.float16
    )
    state.normal_()
    ids = torch.randint(0, shape.vocab, (rows,), device=DEVICE)
    layer = torch.compile(_layer_step, dynamic=False)
    gain = torch.ones(shape.d_model, device=DEVICE)

    def run() -> Tensor:
        residual = table[ids].float()
        for index, w in enumerate(layers):
            residual = layer(residual, conv[index], state[index], w, shape)
        return linear(_norm(residual, gain), table)

    return _captured(run)


@torch.no_grad()
def prompt(shape: Shape, batch: int, length: int) -> torch.cuda.CUDAGraph:
    """Return the captured reading of prompts."""
    layers = [_weights(shape) for _ in range(shape.layers)]
    table = _head(shape)
    ids = torch.randint(0, shape.vocab, (batch, length), device=DEVICE)
    layer = torch.compile(_layer_prompt, dynamic=False)
    gain = torch.ones(shape.d_model, device=DEVICE)

    def run() -> Tensor:
        residual = table[ids].float()
        for w in layers:
            residual = layer(residual, w, shape)
        return linear(_norm(residual[:, -1], gain), table)

    return _captured(run)
