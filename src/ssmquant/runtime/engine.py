"""`Engine`: prefill and decode over a shell's stages, without transformers' forward.

Sequences of different positions are kept in groups of equal position and stepped group by group: no row is padded, so a
sequence in a batch differs from the same alone at most in the order of float sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.families import Shell
from ssmquant.modules.state import MixerState

__all__ = ["Engine", "State"]


@dataclass
class _Group:
    """Sequences at one position.

    Attributes:
        rows: their indices in the batch, int64.
        tokens: how many tokens they have seen.
        layers: state of each mixer.
    """

    rows: Tensor
    tokens: int
    layers: list[MixerState]


@dataclass
class State:
    """What the model remembers of a batch of sequences."""

    groups: list[_Group]

    @property
    def nbytes(self) -> int:
        """Bytes at rest, all sequences together."""
        return sum(layer.nbytes for group in self.groups for layer in group.layers)

    def fork(self) -> State:
        """Return a state that goes on independently of this one."""
        return State([_Group(g.rows, g.tokens, [layer.fork() for layer in g.layers]) for g in self.groups])

    def select(self, rows: Tensor) -> State:
        """Return the state of some sequences of the batch, renumbered in the given order.

        Args:
            rows: int64, distinct indices.
        """
        groups = []
        for group in self.groups:
            kept, places = torch.nonzero(group.rows[:, None] == rows[None, :], as_tuple=True)
            if len(kept):
                groups.append(_Group(places, group.tokens, [layer.rows(kept) for layer in group.layers]))
        return State(groups)


class Engine:
    """Runs a model.

    Args:
        shell: the model.
    """

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """Read prompts, which may differ in length.

        Args:
            prompts: tokens of each sequence; at least one each.

        Returns:
            float32 logits ``[B, vocab]`` after the last token of each, and the state.
        """
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"prompt {index} has no tokens; begin it with the model's first token")
        device = self.shell.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        state = State([])
        logits = torch.empty(len(prompts), self.shell.model.config.vocab_size, device=device)
        for length in lengths.unique().tolist():
            rows = torch.nonzero(lengths == length).flatten()
            ids = torch.tensor([list(prompts[row]) for row in rows.tolist()], device=device)
            hidden, layers = self.hidden(ids, self._initial(len(rows)))
            logits[rows] = self.shell.head(hidden[:, -1])
            state.groups.append(_Group(rows, length, layers))
        return logits, state

    @torch.no_grad()
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one more token of each sequence.

        Args:
            tokens: int64 ``[B]``.
            state: of the tokens before; it is not changed.

        Returns:
            float32 logits ``[B, vocab]`` and the new state.
        """
        state, tokens = state.fork(), tokens.to(self.shell.device)
        logits = torch.empty(len(tokens), self.shell.model.config.vocab_size, device=tokens.device)
        for group in state.groups:
            hidden, _ = self.hidden(tokens[group.rows, None], group.layers)
            logits[group.rows] = self.shell.head(hidden[:, -1])
            group.tokens += 1
        return logits, state

    def hidden(self, ids: Tensor, layers: list[MixerState] | None) -> tuple[Tensor, list[MixerState]]:
        """Return the normalised last hidden ``[B, L, d_model]`` and the states after it.

        Args:
            ids: int64 ``[B, L]``, on any device.
            layers: state of each mixer, updated; None to start and to keep none.
        """
        residual = self.shell.embedding(ids.to(self.shell.device))
        for index, block in enumerate(self.shell.blocks):
            residual = residual + block.mixer.mix(block.norm(residual), layers[index] if layers else None)
        return self.shell.final_norm(residual), layers or []

    def _initial(self, batch: int) -> list[MixerState]:
        dtype = self.shell.final_norm.weight.dtype
        return [block.mixer.initial_state(batch, dtype) for block in self.shell.blocks]
