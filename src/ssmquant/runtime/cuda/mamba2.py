"""The launches of Mamba-2 layers.

A step: norm and in_proj (one launch for a row), convolution and scan (one for a few rows), gated norm with Hadamard
and codes, out_proj onto the residual. A prompt: the same with norm, convolution, and decays, states and outputs apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d.triton import convolve_into_ring
from ssmquant.ops.hadamard.triton import emit, unsupported_rows, unsupported_size
from ssmquant.ops.ssd.triton import scan_codes, size_of_states
from ssmquant.ops.ssd.triton_step import BLOCK, Constants, Memory, Sizes, in_blocks, round_states, step
from ssmquant.runtime.cuda.network import (
    Linear,
    Norm,
    Unsupported,
    linear_of,
    one_scale_of,
    scale_of,
    written_out,
)

if TYPE_CHECKING:
    from ssmquant.families.shell import Block
    from ssmquant.modules.mamba2 import Mamba2Mixer

__all__ = ["Mamba2Layer", "Mamba2Layers"]


@dataclass(frozen=True)
class Mamba2Layer:
    """One layer, `Constants` apart.

    Attributes:
        norm: of the block.
        in_proj: to z, x, B, C, dt.
        in_scale: float32 ``[d_in_proj]``, of in_proj's codes.
        conv_out_scale: float32 ``[conv_dim]``.
        z_scale: float32 ``[d_inner]``.
        gated_gain: float32 ``[d_inner]``, of the gated norm.
        y_scale: float32 ``[1]``, of out_proj's input.
        out_proj: to the residual.
    """

    norm: Norm
    in_proj: Linear
    in_scale: Tensor
    conv_out_scale: Tensor
    z_scale: Tensor
    gated_gain: Tensor
    y_scale: Tensor
    out_proj: Linear


@dataclass(frozen=True)
class Mamba2Layers:
    """All layers of a Mamba-2 model.

    Attributes:
        layers: in order.
        constants: of all layers, a dimension of layers in front.
        sizes: of every mixer.
        dt_limit: lower and upper limit of dt.
        gated_eps: of the gated norm.
        hadamard: whether out_proj's input is transformed.
        state_dtype: of the recurrent state at rest.
    """

    layers: tuple[Mamba2Layer, ...]
    constants: Constants
    sizes: Sizes
    dt_limit: tuple[float, float]
    gated_eps: float
    hadamard: bool
    state_dtype: torch.dtype

    @property
    def interval(self) -> int:
        """Tokens between two roundings of the state; 0 for float32."""
        return self.sizes.interval

    @property
    def repeatable(self) -> bool:
        """Whether a step that does not advance leaves only what the next one writes again: it reads its state only."""
        return self.interval > 0

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Self:
        """Return a shell's blocks as the GPU engine takes them.

        Raises:
            Unsupported: a stage has no codes, or sizes that no kernel has.
        """
        mixers: list[Mamba2Mixer] = [block.mixer for block in blocks]  # type: ignore[misc]  # the family says so
        first, d = mixers[0], mixers[0].dims
        reason = (unsupported_size if first.hadamard else unsupported_rows)(d.d_inner)
        if reason or d.d_state > 256:
            raise Unsupported(reason or f"states of {d.d_state} columns; at most 256")
        sizes = Sizes(d.nheads, d.headdim, d.ngroups, d.d_state, d.d_conv, first.state.interval)
        constants = [_constants(mixer, sizes) for mixer in mixers]
        stacked = Constants(
            **{name: torch.stack([vars(c)[name] for c in constants]) for name in vars(constants[0])}
        )
        return cls(
            tuple(_layer(block, mixer) for block, mixer in zip(blocks, mixers, strict=True)),
            stacked, sizes, (d.dt_min, d.dt_max), d.norm_eps, first.hadamard, first.state.dtype,
        )  # fmt: skip

    def memory(self, slots: int, device: torch.device) -> dict[str, Tensor]:
        """Return the memory of so many sequences, ``[layers, slots, …]`` each; on the meta device its sizes."""
        s, layers = self.sizes, len(self.layers)

        def empty(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
            return torch.empty((layers, slots, *shape), dtype=dtype, device=device)

        return {
            "ring": empty(s.d_conv, s.conv_dim),
            "state": empty(s.nheads, s.headdim, s.d_state, dtype=self.state_dtype),
            "x": empty(-(-s.interval // BLOCK), s.d_inner, BLOCK),
            "B": empty(s.interval, s.ngroups * s.d_state),
            "dt": empty(s.interval, s.nheads, dtype=torch.float32),
        }

    def prompt_bytes(self, tokens: int, sequences: int) -> int:
        """Return about how many bytes a prompt of so many tokens takes while it is read."""
        s = self.sizes
        states = s.nheads * s.headdim * s.d_state * self.state_dtype.itemsize
        a_token = 7 * s.d_inner + 3 * s.conv_dim + 5 * self.layers[0].norm.gain.numel()
        a_token += 20 * s.nheads + 4 * s.ngroups * s.d_state
        scratch = max(p.scratch_bytes(tokens) for p in (self.layers[0].in_proj, self.layers[0].out_proj))
        return tokens * (a_token + states // min(s.interval or 64, 64)) + sequences * states + scratch

    def read(
        self,
        residual: Tensor,
        batch: int,
        slots: Tensor,
        positions: Tensor,
        start: int,
        memory: dict[str, Tensor],
    ) -> None:
        """Run all layers over a piece of prompts of one length.

        Args:
            residual: float32 ``[B * L, d_model]``, updated.
            batch: B.
            slots: int32 ``[B]``.
            positions: int32 ``[slots]``, all ``start`` for these slots.
            start: tokens before the piece, a multiple of the interval (of 64 without one).
            memory: of all layers, updated.
        """
        s, held = self.sizes, Memory(**memory)
        length = len(residual) // batch
        inner, width = s.d_inner, s.conv_dim
        one = torch.ones(1, device=residual.device)
        new = residual.new_empty
        projected = new(batch, length, inner + width + s.nheads, dtype=torch.int8)
        convolved = new(batch, length, width, dtype=torch.int8)
        y = new(batch, length, s.nheads, s.headdim)
        gated = new(len(residual), inner, dtype=torch.int8)
        x, B, C = convolved.split([inner, s.ngroups * s.d_state, s.ngroups * s.d_state], dim=-1)
        z, conv_in, dt = projected.split([inner, width, s.nheads], dim=-1)
        waiting = length % s.interval if s.interval else 0
        where = slots.long()
        for index, layer in enumerate(self.layers):
            c, m = self.constants.layer(index), held.layer(index)
            scale = c.state_scale if self.state_dtype == torch.int8 else None
            layer.in_proj.of_norm(residual, layer.norm, layer.in_scale, projected.flatten(0, 1))
            convolve_into_ring(
                conv_in, c.conv_scale, c.conv_weight, one, c.conv_bias, m.ring if start == 0 else m.ring.clone(),
                m.ring, slots, positions, layer.conv_out_scale, convolved,
            )  # fmt: skip
            scan_codes(
                x.unflatten(-1, (s.nheads, s.headdim)), c.x_scale, dt, c.dt_scale, c.A,
                B.unflatten(-1, (s.ngroups, s.d_state)), c.B_scale, C.unflatten(-1, (s.ngroups, s.d_state)), c.C_scale,
                c.D, c.dt_bias, *self.dt_limit, m.state, scale, c.state_row, c.state_size, s.interval, y,
                m.state, scale_a_channel=False, slots=slots, fresh=start == 0,
            )  # fmt: skip
            if waiting:
                codes = in_blocks(x[:, -waiting:])
                m.x[where, : codes.shape[1]] = codes
                m.B[where, :waiting] = B[:, -waiting:]
                steps = torch.nn.functional.softplus(dt[:, -waiting:] * c.dt_scale + c.dt_bias)
                m.dt[where, :waiting] = steps.clamp(*self.dt_limit)
            emit(
                y.view(-1, inner), z.flatten(0, 1), layer.z_scale, layer.gated_gain, self.gated_eps,
                inner // s.ngroups, self.hadamard, layer.y_scale, gated,
            )  # fmt: skip
            layer.out_proj.add_to(residual, gated, layer.y_scale)

    def step(self, residual: Tensor, slots: Tensor, positions: Tensor, memory: dict[str, Tensor]) -> None:
        """Run all layers for one token of each row; arguments as for `read`."""
        s, held, rows = self.sizes, Memory(**memory), len(residual)
        projected = residual.new_empty(rows, s.d_inner + s.conv_dim + s.nheads, dtype=torch.int8)
        y = residual.new_empty(rows, s.d_inner)
        gated = residual.new_empty(rows, s.d_inner, dtype=torch.int8)
        for index, layer in enumerate(self.layers):
            layer.in_proj.of_norm(residual, layer.norm, layer.in_scale, projected)
            c, m = self.constants.layer(index), held.layer(index)
            step(projected, slots, positions, c, m, s, self.dt_limit, y)
            emit(
                y, projected[:, : s.d_inner], layer.z_scale, layer.gated_gain, self.gated_eps,
                s.d_inner // s.ngroups, self.hadamard, layer.y_scale, gated,
            )  # fmt: skip
            layer.out_proj.add_to(residual, gated, layer.y_scale)

    def round(self, slots: Tensor, memory: dict[str, Tensor]) -> None:
        """Round the states of slots (int32) whose interval is full."""
        round_states(slots, self.constants, Memory(**memory), self.sizes)


def _layer(block: Block, mixer: Mamba2Mixer) -> Mamba2Layer:
    d = mixer.dims
    widths = (d.d_inner, d.d_inner, d.ngroups * d.d_state, d.ngroups * d.d_state, d.nheads)
    names = ("z", "x_in", "B_in", "C_in", "dt")
    in_scale = torch.cat(
        [written_out(scale_of(mixer, name), width) for name, width in zip(names, widths, strict=True)]
    )
    hidden = one_scale_of(mixer, "hidden")
    return Mamba2Layer(
        norm=Norm(block.norm.weight.detach().float(), block.norm.eps, hidden),
        in_proj=linear_of(mixer.in_proj, "in_proj.weight", mixer.in_proj.bias),
        in_scale=in_scale,
        conv_out_scale=_conv_out_scale(mixer),
        z_scale=written_out(scale_of(mixer, "z"), d.d_inner),
        gated_gain=mixer.norm.weight.detach().float(),
        y_scale=one_scale_of(mixer, "y"),
        out_proj=linear_of(mixer.out_proj, "out_proj.weight", mixer.out_proj.bias),
    )


def _conv_out_scale(mixer: Mamba2Mixer) -> Tensor:
    d = mixer.dims
    shared = d.ngroups * d.d_state
    return torch.cat(
        [
            written_out(scale_of(mixer, name), width)
            for name, width in (("x", d.d_inner), ("B", shared), ("C", shared))
        ]
    )


def _group_scale(mixer: Mamba2Mixer, name: str) -> Tensor:
    d = mixer.dims
    table = written_out(scale_of(mixer, name), d.ngroups * d.d_state).view(d.ngroups, d.d_state)
    if not torch.equal(table, table[:, :1].expand_as(table)):
        raise Unsupported(f"site {name} has scales that differ within a group of {d.d_state} columns")
    return table[:, 0].contiguous()


def _constants(mixer: Mamba2Mixer, sizes: Sizes) -> Constants:
    d, conv = mixer.dims, mixer.conv1d
    if conv.format.name != "int8":
        raise Unsupported(f"conv1d.weight is stored as {conv.format.name}; the GPU engine runs int8")
    shared = d.ngroups * d.d_state
    conv_in = torch.cat(
        [
            written_out(scale_of(mixer, name), width)
            for name, width in (("x_in", d.d_inner), ("B_in", shared), ("C_in", shared))
        ]
    )
    out = _conv_out_scale(mixer)
    bias = torch.zeros_like(out) if conv.bias is None else conv.bias.detach().float()
    scale, rows, choice = _state_scales(mixer, sizes)
    return Constants(
        conv_weight=conv.stored["codes"].contiguous(),
        conv_scale=conv_in * conv.stored["scale"],
        conv_bias=bias,
        conv_inverse=1.0 / out,
        x_scale=written_out(scale_of(mixer, "x"), d.d_inner),
        B_scale=_group_scale(mixer, "B"),
        C_scale=_group_scale(mixer, "C"),
        dt_scale=written_out(scale_of(mixer, "dt"), d.nheads),
        dt_bias=mixer.dt_bias.detach().float(),
        A=-torch.exp(mixer.A_log.detach().float()),
        D=mixer.D.detach().float(),
        state_scale=scale,
        state_rows=rows,
        state_choice=choice,
        state_row=rows.gather(1, choice.view(sizes.nheads, sizes.headdim).long()).flatten(),
        state_size=size_of_states(scale),
    )


def _state_scales(mixer: Mamba2Mixer, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state's scales as `Constants` has them: rows, the rows of each head, the choice of each channel."""
    site, device = mixer.state, mixer.A_log.device
    rows = torch.zeros(sizes.nheads, 4, dtype=torch.int32, device=device)
    choice = torch.zeros(sizes.d_inner, dtype=torch.int32, device=device)
    if site.dtype != torch.int8:
        return torch.ones(1, sizes.d_state, device=device), rows, choice
    scale = site.scale.float().expand(-1, sizes.d_state).contiguous()
    if len(scale) > 1:
        group = site.group.view(sizes.nheads, sizes.headdim) if "group" in site._buffers else None
        for head in range(sizes.nheads):
            found, which = (None, None) if group is None else torch.unique(group[head], return_inverse=True)
            if found is None or which is None or len(found) > 4:
                raise Unsupported("the state has more than four rows of scales a head")
            of_group = len(scale) // sizes.ngroups
            group_of_head = head // (sizes.nheads // sizes.ngroups)
            if len(scale) % sizes.ngroups or bool((found // of_group != group_of_head).any()):
                raise Unsupported("the state's rows of scales are shared between groups")
            rows[head, : len(found)] = found.int()
            rows[head, len(found) :] = found[0].int()
            choice[head * sizes.headdim : (head + 1) * sizes.headdim] = which.int()
    return scale, rows, choice
