"""Models that are not static int8 throughout, as the GPU engine runs them: stage by stage, in its graphs and slots.

A stage is what it is everywhere, ops on codes or floats; here its launches are captured once. Between two steps the
states lie in slots, from which a step gathers its rows and to which it scatters them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmquant.families import Block, Shell
from ssmquant.modules.activation import Activation
from ssmquant.modules.mixer import StateSite
from ssmquant.modules.state import MixerState
from ssmquant.runtime.cuda.network import Unsupported

__all__ = ["StageLayers", "Stages", "stages_of"]

_UNCAPTURED = {"int8-outliers": "which columns have outliers is found as it runs"}
"""Formats whose ops wait for the GPU, and why."""


@dataclass(frozen=True)
class StageLayers:
    """All layers of a model.

    Attributes:
        blocks: in order.
    """

    blocks: tuple[Block, ...]

    @property
    def interval(self) -> int:
        """Tokens between two roundings of the state: none, it is float32."""
        return 0

    @property
    def repeatable(self) -> bool:
        """Whether a step may be run twice for one token: no, it goes on from the state that it writes."""
        return False

    def memory(self, slots: int, device: torch.device) -> dict[str, Tensor]:
        """Return the memory of so many sequences, ``[1, slots, …]`` each; on the meta device its sizes."""
        found = {}
        for index, block in enumerate(self.blocks):
            state = block.mixer.initial_state(0, torch.float32)
            for name, like in (("conv", state.conv), ("state", state.ssm)):
                shape = (1, slots, *like.shape[1:])
                found[f"{name}.{index}"] = torch.empty(shape, dtype=like.dtype, device=device)
        return found

    def by_layer(self, memory: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield each layer's part of the memory, ``[slots, …]`` each: ``conv`` and ``state``."""
        for index in range(len(self.blocks)):
            yield {name: memory[f"{name}.{index}"][0] for name in ("conv", "state")}

    def prompt_bytes(self, tokens: int, sequences: int) -> int:
        """Return about how many bytes a prompt of so many tokens takes while it is read."""
        mixer = self.blocks[0].mixer
        channels = sum(site.channels for site in mixer.act.values() if isinstance(site, Activation))
        cells = mixer.initial_state(0, torch.float32).ssm.shape[1:].numel()
        # Floats before and after each stage, and the state at every 64th token.
        return tokens * (8 * channels + cells // 16) + sequences * 8 * cells

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
            positions: not needed.
            start: tokens before the piece.
            memory: of all layers, updated.
        """
        hidden, where = residual.view(batch, -1, residual.shape[-1]), slots.long()
        for block, held in zip(self.blocks, self.by_layer(memory), strict=True):
            if start:
                state = MixerState(held["conv"][where], held["state"][where])
            else:
                state = block.mixer.initial_state(batch, torch.float32)
            hidden += block.mixer.mix(block.norm(hidden), state)
            held["conv"][where], held["state"][where] = state.conv, state.ssm

    def step(self, residual: Tensor, slots: Tensor, positions: Tensor, memory: dict[str, Tensor]) -> None:
        """Run all layers for one token of each row; arguments as for `read`."""
        self.read(residual, len(residual), slots, positions, 1, memory)

    def round(self, slots: Tensor, memory: dict[str, Tensor]) -> None:
        """Do nothing: a float32 state is not rounded."""


@dataclass(frozen=True)
class Stages:
    """A whole model, with what the engine asks of a `Network`.

    Attributes:
        shell: the model, on the GPU.
        mixers: its layers.
    """

    shell: Shell
    mixers: StageLayers

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.shell.device

    @property
    def vocab(self) -> int:
        """Number of logits."""
        return self.shell.embedding.shape[0]

    def embedding(self, ids: Tensor) -> Tensor:
        """Return float32 rows ``[..., d_model]`` of tokens."""
        rows: Tensor = self.shell.embedding(ids)
        return rows

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[M, vocab]`` of a residual ``[M, d_model]``."""
        logits: Tensor = self.shell.head(self.shell.final_norm(hidden))
        return logits


def stages_of(shell: Shell) -> Stages:
    """Return a shell as the GPU engine runs it stage by stage.

    Raises:
        Unsupported: a stage cannot be captured, or a state is rounded, which takes tokens of the past to a step.
    """
    for reason in _reasons(shell):
        raise Unsupported(reason)
    return Stages(shell, StageLayers(shell.blocks))


def _reasons(shell: Shell) -> Iterator[str]:
    dtype = shell.final_norm.weight.dtype
    if dtype != torch.float32:
        yield f"its floats are {dtype}, float32 is supported"
    for name, site in shell.activations():
        if isinstance(site, StateSite) and site.interval:
            yield f"{name} is {site.scheme.short()} beside floats; choose the recipe's ssm_state=float32"
        if site._forward_hooks:
            yield f"{name} is observed"
    for name, weight in shell.weights():
        if weight.format.name in _UNCAPTURED:
            yield f"{name} is stored as {weight.format.name}: {_UNCAPTURED[weight.format.name]}"
