"""The launches of Mamba-1 layers: a step and a prompt run the same seven stages, each with a scan of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d.triton import convolve_into_ring
from ssmquant.ops.hadamard.triton import emit, unsupported_rows, unsupported_size
from ssmquant.ops.selective_scan.triton import scan_into
from ssmquant.ops.selective_scan.triton_step import step
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
    from ssmquant.modules.mamba1 import Mamba1Mixer

__all__ = ["Mamba1Layer", "Mamba1Layers"]


@dataclass(frozen=True)
class Mamba1Layer:
    """One layer.

    Attributes:
        norm: of the block.
        in_proj: to x and z.
        in_scale: float32 ``[2 * d_inner]``, of in_proj's codes.
        conv_weight: int8 ``[d_inner, d_conv]``.
        conv_scale: float32 ``[d_inner]``, scale of the input times scale of the weight.
        conv_bias: float32 ``[d_inner]``.
        x_scale: float32 ``[d_inner]``, equal for all channels: x_proj sums over them.
        x_proj: to dt's low rank, B and C.
        select_scale: float32 ``[dt_rank + 2 * d_state]``, of x_proj's codes.
        dt_in_scale: float32 ``[1]``.
        dt_proj: to dt, without bias.
        dt_scale: float32 ``[d_inner]``.
        dt_bias: float32 ``[d_inner]``.
        A: float32 ``[d_inner, d_state]``.
        D: float32 ``[d_inner]``.
        B_scale: float32 ``[1]``.
        C_scale: float32 ``[1]``.
        z_scale: float32 ``[d_inner]``.
        y_scale: float32 ``[1]``, of out_proj's input.
        out_proj: to the residual.
        state_scale: float32 ``[rows, d_state]`` of an int8 state.
        state_row: int32 ``[d_inner]``, the row of each channel.
    """

    norm: Norm
    in_proj: Linear
    in_scale: Tensor
    conv_weight: Tensor
    conv_scale: Tensor
    conv_bias: Tensor
    x_scale: Tensor
    x_proj: Linear
    select_scale: Tensor
    dt_in_scale: Tensor
    dt_proj: Linear
    dt_scale: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    B_scale: Tensor
    C_scale: Tensor
    z_scale: Tensor
    y_scale: Tensor
    out_proj: Linear
    state_scale: Tensor | None
    state_row: Tensor | None


@dataclass(frozen=True)
class Mamba1Layers:
    """All layers of a Mamba-1 model.

    Attributes:
        layers: in order.
        d_state: columns of the state.
        interval: tokens between two roundings of the state; 0 for float32.
        hadamard: whether out_proj's input is transformed.
        state_dtype: of the recurrent state at rest.
    """

    layers: tuple[Mamba1Layer, ...]
    d_state: int
    interval: int
    hadamard: bool
    state_dtype: torch.dtype

    @property
    def repeatable(self) -> bool:
        """Whether a step may be run twice for one token: no, it goes on from the state that it writes."""
        return False

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Self:
        """Return a shell's blocks as the GPU engine takes them.

        Raises:
            Unsupported: a stage has no codes, or sizes that no kernel has.
        """
        mixers: list[Mamba1Mixer] = [block.mixer for block in blocks]  # type: ignore[misc]  # the family says so
        first, d = mixers[0], mixers[0].dims
        reason = (unsupported_size if first.hadamard else unsupported_rows)(d.d_inner)
        if reason or d.d_state > 64:
            raise Unsupported(reason or f"states of {d.d_state} columns; at most 64")
        if d.dt_B_C_eps is not None:
            raise Unsupported("dt, B and C are normed before they are quantised")
        layers = tuple(_layer(block, mixer) for block, mixer in zip(blocks, mixers, strict=True))
        return cls(layers, d.d_state, first.state.interval, first.hadamard, first.state.dtype)

    def memory(self, slots: int, device: torch.device) -> dict[str, Tensor]:
        """Return the memory of so many sequences, ``[layers, slots, …]`` each; on the meta device its sizes."""
        channels, taps = self.layers[0].conv_weight.shape
        waiting = self.interval if self.interval > 1 else 0

        def empty(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
            return torch.empty((len(self.layers), slots, *shape), dtype=dtype, device=device)

        return {
            "ring": empty(taps, channels),
            "state": empty(channels, self.d_state, dtype=self.state_dtype),
            "x": empty(waiting, channels),
            "dt": empty(waiting, channels),
            "B": empty(waiting, self.d_state),
        }

    def prompt_bytes(self, tokens: int, sequences: int) -> int:
        """Return about how many bytes a prompt of so many tokens takes while it is read."""
        first = self.layers[0]
        scan = 4 * first.D.numel() + (8 << ceil(log2(self.d_state)))
        a_token = 10 * first.D.numel() + scan + 2 * first.select_scale.numel() + 5 * first.norm.gain.numel()
        return tokens * a_token + max(p.scratch_bytes(tokens) for p in (first.in_proj, first.out_proj))

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
            start: tokens before the piece, a multiple of the interval.
            memory: of all layers, updated.
        """
        length = len(residual) // batch
        waiting = length % self.interval if self.interval else 0
        where = slots.long()
        for index, layer in enumerate(self.layers):
            m = {name: tensor[index] for name, tensor in memory.items()}
            z, x, dt, B, C = self._select(layer, residual, batch, slots, positions, start, m)
            y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
            scan_into(
                x, layer.x_scale, dt, layer.dt_scale, layer.A, B, layer.B_scale, C, layer.C_scale, layer.D,
                layer.dt_bias, m["state"], layer.state_scale, layer.state_row, self.interval, y, m["state"],
                slots=slots, fresh=start == 0,
            )  # fmt: skip
            if waiting:
                for name, codes in (("x", x), ("dt", dt), ("B", B)):
                    m[name][where, :waiting] = codes[:, -waiting:]
            self._finish(layer, residual, y.flatten(0, 1), z)

    def step(self, residual: Tensor, slots: Tensor, positions: Tensor, memory: dict[str, Tensor]) -> None:
        """Run all layers for one token of each row; arguments as for `read`."""
        for index, layer in enumerate(self.layers):
            m = {name: tensor[index] for name, tensor in memory.items()}
            z, x, dt, B, C = self._select(layer, residual, len(residual), slots, positions, 0, m)
            y = torch.empty(len(residual), x.shape[-1], dtype=torch.float32, device=x.device)
            step(
                x.flatten(0, 1), layer.x_scale, dt.flatten(0, 1), layer.dt_scale, layer.A, B.flatten(0, 1),
                layer.B_scale, C.flatten(0, 1), layer.C_scale, layer.D, layer.dt_bias, slots, positions, m["state"],
                layer.state_scale, layer.state_row, m["x"], m["dt"], m["B"], self.interval, y,
            )  # fmt: skip
            self._finish(layer, residual, y, z)

    def round(self, slots: Tensor, memory: dict[str, Tensor]) -> None:
        """Do nothing: the step rounds its states itself."""

    def _select(
        self,
        layer: Mamba1Layer,
        residual: Tensor,
        batch: int,
        slots: Tensor,
        positions: Tensor,
        start: int,
        memory: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return z ``[B * L, d_inner]`` and x, dt, B and C ``[B, L, …]``, all codes."""
        inner, tokens = layer.D.numel(), len(residual)
        new = residual.new_empty
        projected = new(tokens, 2 * inner, dtype=torch.int8)
        layer.in_proj.of_norm(residual, layer.norm, layer.in_scale, projected)
        x = new(batch, tokens // batch, inner, dtype=torch.int8)
        ring = memory["ring"]
        convolve_into_ring(
            projected[:, :inner].unflatten(0, (batch, -1)), layer.conv_scale, layer.conv_weight,
            torch.ones(1, device=x.device), layer.conv_bias, ring if start == 0 else ring.clone(), ring, slots,
            positions, layer.x_scale, x,
        )  # fmt: skip
        rank = layer.select_scale.numel() - 2 * self.d_state
        selected = new(tokens, layer.select_scale.numel(), dtype=torch.int8)
        layer.x_proj.into(x.flatten(0, 1), layer.x_scale[:1], layer.select_scale, selected)
        dt = new(tokens, inner, dtype=torch.int8)
        layer.dt_proj.into(selected[:, :rank].contiguous(), layer.dt_in_scale, layer.dt_scale, dt)
        B, C = selected.unflatten(0, (batch, -1))[..., rank:].split(self.d_state, dim=-1)
        return projected[:, inner:], x, dt.unflatten(0, (batch, -1)), B, C

    def _finish(self, layer: Mamba1Layer, residual: Tensor, y: Tensor, z: Tensor) -> None:
        gated = emit(y, z, layer.z_scale, None, 0.0, y.shape[1], self.hadamard, layer.y_scale)
        layer.out_proj.add_to(residual, gated, layer.y_scale)


def _layer(block: Block, mixer: Mamba1Mixer) -> Mamba1Layer:
    d, conv = mixer.dims, mixer.conv1d
    if conv.format.name != "int8":
        raise Unsupported(f"conv1d.weight is stored as {conv.format.name}; the GPU engine runs int8")
    x_in, z = (written_out(scale_of(mixer, name), d.d_inner) for name in ("x_in", "z"))
    dt_in, B, C = (one_scale_of(mixer, name) for name in ("dt_in", "B", "C"))
    site, state_scale, state_row = mixer.state, None, None
    if site.dtype == torch.int8:
        state_scale = site.scale.float().expand(-1, d.d_state).contiguous()
        rows = torch.arange(d.d_inner, dtype=torch.int32, device=state_scale.device)
        state_row = rows if len(state_scale) > 1 else torch.zeros_like(rows)
    assert mixer.dt_proj.bias is not None
    bias = torch.zeros_like(x_in) if conv.bias is None else conv.bias.detach().float()
    return Mamba1Layer(
        norm=Norm(block.norm.weight.detach().float(), block.norm.eps, one_scale_of(mixer, "hidden")),
        in_proj=linear_of(mixer.in_proj, "in_proj.weight", mixer.in_proj.bias),
        in_scale=torch.cat([x_in, z]),
        conv_weight=conv.stored["codes"].contiguous(),
        conv_scale=x_in * conv.stored["scale"],
        conv_bias=bias,
        x_scale=written_out(one_scale_of(mixer, "x"), d.d_inner),
        x_proj=linear_of(mixer.x_proj, "x_proj.weight", None),
        select_scale=torch.cat(
            [dt_in.expand(d.dt_rank), B.expand(d.d_state), C.expand(d.d_state)]
        ).contiguous(),
        dt_in_scale=dt_in,
        dt_proj=linear_of(mixer.dt_proj, "dt_proj.weight", None),
        dt_scale=written_out(scale_of(mixer, "dt"), d.d_inner),
        dt_bias=mixer.dt_proj.bias.detach().float(),
        A=-torch.exp(mixer.A_log.detach().float()),
        D=mixer.D.detach().float(),
        B_scale=B,
        C_scale=C,
        z_scale=z,
        y_scale=one_scale_of(mixer, "y"),
        out_proj=linear_of(mixer.out_proj, "out_proj.weight", mixer.out_proj.bias),
        state_scale=state_scale,
        state_row=state_row,
    )
