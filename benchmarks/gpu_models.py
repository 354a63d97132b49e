"""Models of published sizes with random codes and scales, made on the GPU: what `gpu.py` runs without any download.

Codes are uniform and scales such that activations are of the size of one: kernels take the same time as with trained
weights, since none of them looks at values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmquant.ops.int4_progressive_linear.reference import join_grid
from ssmquant.ops.int4_progressive_linear.triton import arrange
from ssmquant.ops.ssd.triton import size_of_states
from ssmquant.ops.ssd.triton_step import Constants, Sizes
from ssmquant.runtime.cuda.mamba1 import Mamba1Layer, Mamba1Layers
from ssmquant.runtime.cuda.mamba2 import Mamba2Layer, Mamba2Layers
from ssmquant.runtime.cuda.network import Embedding, Linear, Network, Norm

__all__ = ["SHAPES", "Shape", "make"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        kind: mamba1 or mamba2.
        d_model: width.
        layers: number of layers.
        heads, headdim, groups: of Mamba-2 (d_inner is their product; Mamba-1: headdim 1).
        d_state: columns of the state.
        vocab: tokens.
        tied: whether head and embedding are one table.
    """

    kind: str
    d_model: int
    layers: int
    heads: int
    headdim: int
    groups: int
    d_state: int
    vocab: int
    tied: bool

    @property
    def d_inner(self) -> int:
        """Channels of x."""
        return self.heads * self.headdim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution."""
        return self.d_inner + (2 * self.groups * self.d_state if self.kind == "mamba2" else 0)

    @property
    def d_in_proj(self) -> int:
        """Rows of in_proj."""
        return self.d_inner + self.conv_dim + (self.heads if self.kind == "mamba2" else 0)


SHAPES = {
    "mamba2-2.7b": Shape("mamba2", 2560, 64, 80, 64, 1, 128, 50288, True),
    "mamba2-8b": Shape("mamba2", 4096, 56, 128, 64, 8, 128, 256000, False),
    "mamba-2.8b": Shape("mamba1", 2560, 64, 5120, 1, 1, 16, 50280, True),
}
DEVICE = torch.device("cuda")
GROUP_SIZE = 128  # of four-bit projections: what the kernels of others, beside which ours stand, have


def _codes(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=DEVICE)


def _scale(size: int, absmax: float = 4.0) -> Tensor:
    return absmax / 127 * (0.75 + 0.5 * torch.rand(size, device=DEVICE))


def _linear(k: int, n: int, bits: int, gain: float = 1.0, group_size: int = GROUP_SIZE) -> Linear:
    if bits == 8:
        scale = gain / (73 * k**0.5) * (0.75 + 0.5 * torch.rand(n, device=DEVICE))
        return Linear("int8", (_codes(n, k), scale), None, n)
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=DEVICE)
    groups = k // group_size
    multiplier = torch.randint(1, 9, (n, groups), dtype=torch.uint8, device=DEVICE)
    zero_point = torch.randint(-8, 8, (n, groups), dtype=torch.int8, device=DEVICE)
    grid = join_grid(multiplier, zero_point)
    scale = gain / (33 * k**0.5) * (0.75 + 0.5 * torch.rand(n, device=DEVICE))
    return Linear("int4-progressive", (*arrange(packed, grid), scale), None, n)


def _norm(d_model: int) -> Norm:
    return Norm(torch.ones(d_model, device=DEVICE), 1e-5, _scale(1))


def _mamba2(shape: Shape, bits: int, piecewise: bool, group_size: int) -> Mamba2Layers:
    inner, width, count = shape.d_inner, shape.conv_dim, shape.heads
    sizes = Sizes(shape.heads, shape.headdim, shape.groups, shape.d_state, 4, 64)
    layers, constants = [], []
    for _ in range(shape.layers):
        out_scale = _scale(width, 3.0)
        if not piecewise:
            out_scale = out_scale[:1].expand(width).contiguous()
        for group in range(2 * shape.groups):
            part = slice(inner + group * shape.d_state, inner + (group + 1) * shape.d_state)
            out_scale[part] = out_scale[part.start].clone()
        rows = shape.groups * 16 if piecewise else 1
        # Sixteen rows a group: four clusters of heads, with four rows each.
        head, of_group = torch.arange(count, device=DEVICE), count // shape.groups
        cluster = head // of_group * 4 + head % of_group * 4 // of_group
        base = (cluster * 4)[:, None] + torch.arange(4, device=DEVICE)
        state_rows = (base if piecewise else torch.zeros_like(base)).int()
        choice = (torch.arange(inner, device=DEVICE) % shape.headdim * 4 // shape.headdim).int()
        choice = choice if piecewise else torch.zeros_like(choice)
        state_scale = _scale(rows * shape.d_state, 2.0).view(rows, shape.d_state)
        constants.append(
            Constants(
                conv_weight=_codes(width, 4),
                conv_scale=_scale(width) * _scale(width, 0.5),
                conv_bias=0.1 * torch.randn(width, device=DEVICE),
                conv_inverse=1.0 / out_scale,
                x_scale=out_scale[:inner].contiguous(),
                B_scale=out_scale[inner : inner + shape.groups * shape.d_state : shape.d_state].contiguous(),
                C_scale=out_scale[inner + shape.groups * shape.d_state :: shape.d_state].contiguous(),
                dt_scale=_scale(count, 3.0),
                dt_bias=torch.empty(count, device=DEVICE).uniform_(-6.0, -2.0),
                A=-torch.empty(count, device=DEVICE).uniform_(1.0, 16.0),
                D=torch.ones(count, device=DEVICE),
                state_scale=state_scale,
                state_rows=state_rows,
                state_choice=choice,
                state_row=state_rows.gather(1, choice.view(count, -1).long()).flatten(),
                state_size=size_of_states(state_scale),
            )
        )
        in_scale = _scale(shape.d_in_proj)
        layers.append(
            Mamba2Layer(
                norm=_norm(shape.d_model),
                in_proj=_linear(shape.d_model, shape.d_in_proj, bits, group_size=group_size),
                in_scale=in_scale if piecewise else in_scale[:1].contiguous(),
                conv_out_scale=out_scale if piecewise else out_scale[:1].contiguous(),
                z_scale=in_scale[:inner].contiguous() if piecewise else in_scale[:1].contiguous(),
                gated_gain=torch.ones(inner, device=DEVICE),
                y_scale=_scale(1),
                out_proj=_linear(inner, shape.d_model, bits, gain=0.2, group_size=group_size),
            )
        )
    stacked = {name: torch.stack([vars(c)[name] for c in constants]) for name in vars(constants[0])}
    return Mamba2Layers(
        tuple(layers), Constants(**stacked), sizes, (0.0, float("inf")), 1e-5, True, torch.int8
    )


def _mamba1(shape: Shape, bits: int) -> Mamba1Layers:
    inner, rank = shape.d_inner, 160
    layers = []
    for _ in range(shape.layers):
        x_scale = _scale(1, 3.0).expand(inner).contiguous()
        layers.append(
            Mamba1Layer(
                norm=_norm(shape.d_model),
                in_proj=_linear(shape.d_model, 2 * inner, bits),
                in_scale=_scale(2 * inner),
                conv_weight=_codes(inner, 4),
                conv_scale=_scale(inner) * _scale(inner, 0.5),
                conv_bias=0.1 * torch.randn(inner, device=DEVICE),
                x_scale=x_scale,
                x_proj=_linear(inner, rank + 2 * shape.d_state, 8),
                select_scale=_scale(1).expand(rank + 2 * shape.d_state).contiguous(),
                dt_in_scale=_scale(1),
                dt_proj=_linear(rank, inner, 8),
                dt_scale=_scale(inner),
                dt_bias=torch.empty(inner, device=DEVICE).uniform_(-6.0, -2.0),
                A=-torch.arange(1, shape.d_state + 1, device=DEVICE).float().expand(inner, -1).contiguous(),
                D=torch.ones(inner, device=DEVICE),
                B_scale=_scale(1),
                C_scale=_scale(1),
                z_scale=_scale(inner),
                y_scale=_scale(1),
                out_proj=_linear(inner, shape.d_model, bits, gain=0.2),
                state_scale=None,
                state_row=None,
            )
        )
    return Mamba1Layers(tuple(layers), shape.d_state, 1, True, torch.float16)


def make(
    name: str, bits: int, *, piecewise: bool = True, layers: int | None = None, group_size: int = GROUP_SIZE
) -> Network:
    """Return a model of a published size with random codes.

    Args:
        name: a key of `SHAPES`.
        bits: 8 or 4, of the projections' weights (4: of a head of its own and the embedding then, too).
        piecewise: whether activations and state have piecewise scales; one scale a tensor otherwise.
        layers: fewer than the model has, for a quick check.
        group_size: of four-bit projections.
    """
    shape = SHAPES[name]
    if layers is not None:
        shape = Shape(**{**vars(shape), "layers": layers})
    torch.manual_seed(0)
    mixers = _mamba1(shape, bits) if shape.kind == "mamba1" else _mamba2(shape, bits, piecewise, group_size)
    if shape.tied or bits == 8:
        table, scale = _codes(shape.vocab, shape.d_model), _scale(shape.vocab, 1.0)
    else:
        table = torch.randint(0, 256, (shape.vocab, shape.d_model // 2), dtype=torch.uint8, device=DEVICE)
        scale = _scale(shape.vocab * shape.d_model // 128, 1.0).view(shape.vocab, -1) * 18
    tied = Linear("int8", (table, scale), None, shape.vocab)
    head = tied if shape.tied else _linear(shape.d_model, shape.vocab, bits)
    return Network(Embedding(table, scale), mixers, _norm(shape.d_model), head, shape.vocab, shape.d_model)
