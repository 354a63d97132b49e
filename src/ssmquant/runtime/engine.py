"""`Engine`: prefill and decode over a shell's stages, without transformers' forward.

Sequences of different positions are kept in groups of equal position and stepped group by group: no row is padded, so a
sequence in a batch differs from the same alone at most in the order of float sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.families import Block, Shell
from ssmquant.modules.activation import QTensor
from ssmquant.modules.state import MixerState
from ssmquant.runtime.state_file import LayerRecord, SequenceRecord, read_state, write_state

__all__ = ["Engine", "State"]

# Scan inputs in the order of a mixer's pending tokens.
_SCAN_INPUTS = ("x", "B", "C", "dt")


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
    """What the model remembers of a batch of sequences.

    Attributes:
        groups: the sequences, by position.
        identity: gives the digest of the model, for saved states.
    """

    groups: list[_Group]
    identity: Callable[[], str] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes at rest, all sequences together."""
        return sum(layer.nbytes for group in self.groups for layer in group.layers)

    def fork(self) -> State:
        """Return a state that goes on independently of this one."""
        groups = [_Group(g.rows, g.tokens, [layer.fork() for layer in g.layers]) for g in self.groups]
        return State(groups, self.identity)

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which any engine of the same model goes on from (`Engine.load_state`).

        Args:
            path: the file; one that is there is replaced.

        Raises:
            CheckpointError: it cannot be written.
        """
        records = {
            int(row): SequenceRecord(group.tokens, tuple(_record(layer, place) for layer in group.layers))
            for group in self.groups
            for place, row in enumerate(group.rows)
        }
        write_state(path, [records[row] for row in sorted(records)], identity=self.identity())

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
        return State(groups, self.identity)


def _record(layer: MixerState, place: int) -> LayerRecord:
    pending = {}
    for name, tokens in zip(_SCAN_INPUTS, layer.pending, strict=False):
        if name != "C":
            pending[name] = tokens.data[place]
            if tokens.scale is not None and tokens.scale.dim() > 1:
                pending[f"{name}_scale"] = tokens.scale[place]
    return LayerRecord(layer.conv[place], layer.ssm[place], pending)


def _restored(block: Block, layer: LayerRecord, device: torch.device) -> MixerState:
    pending = []
    for name in _SCAN_INPUTS if layer.pending else ():
        site = block.mixer.site(name)
        # C of tokens that have been read is of no use; zeros of its shape stand for it.
        data = layer.pending.get(name)
        like = layer.pending["B"]
        if data is None:
            data, scale = torch.zeros_like(like), layer.pending.get("B_scale")
        else:
            scale = layer.pending.get(f"{name}_scale")
        static = site.static_scale
        pending.append(
            QTensor(
                data[None].to(device),
                static if static is not None else scale if scale is None else scale[None].to(device),
            )
        )
    return MixerState(layer.conv[None].to(device), layer.ssm[None].to(device), tuple(pending))


class Engine:
    """Runs a model stage by stage: any model, on any device.

    Args:
        shell: the model.
        identity: gives the digest of the model, for saved states.
        reason: why no engine for the model's device runs it.
    """

    def __init__(
        self,
        shell: Shell,
        *,
        identity: Callable[[], str] = lambda: "",
        reason: str = "the stages were asked for",
    ) -> None:
        self.shell = shell
        self.identity = identity
        self.reason = reason

    def load_state(self, path: str | Path) -> State:
        """Return the state that `State.save` of any engine of the same model wrote.

        Args:
            path: the file.

        Raises:
            CheckpointError: it is missing, damaged, or of another model.
        """
        records = read_state(path, self.shell, identity=self.identity())
        device = self.shell.device
        groups = [
            _Group(
                torch.tensor([row], device=device),
                record.tokens,
                [
                    _restored(block, layer, device)
                    for block, layer in zip(self.shell.blocks, record.layers, strict=True)
                ],
            )
            for row, record in enumerate(records)
        ]
        return State(groups, self.identity)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of every position; no state is kept.

        Args:
            ids: int64 ``[B, L]``, sequences of one length without padding.

        Returns:
            float32 ``[B, L, vocab]``.
        """
        hidden, _ = self.hidden(ids, None)
        logits: Tensor = self.shell.head(hidden)
        return logits

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
        state = State([], self.identity)
        logits = torch.empty(len(prompts), self.shell.config.vocab_size, device=device)
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
        logits = torch.empty(len(tokens), self.shell.config.vocab_size, device=tokens.device)
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
