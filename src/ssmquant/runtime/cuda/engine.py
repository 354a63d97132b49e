"""`CudaEngine`: the engine's interface over GPU kernels, a CUDA graph for each size of batch.

Rows of a batch may be at different positions: a slot knows its own. The host knows them too, so that a step needs no
answer from the GPU; it launches one graph, and once in an interval the rounding of the states that are due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.runtime.cuda.launches import PIECE, Launches
from ssmquant.runtime.cuda.mamba1 import Mamba1Layers
from ssmquant.runtime.cuda.mamba2 import Mamba2Layers
from ssmquant.runtime.cuda.network import Network, Unsupported, network_of
from ssmquant.runtime.cuda.records import from_record, to_record
from ssmquant.runtime.cuda.slots import Slots
from ssmquant.runtime.cuda.stages import StageLayers, Stages, stages_of
from ssmquant.runtime.state_file import SequenceRecord, read_state, write_state

if TYPE_CHECKING:
    from ssmquant.families import Shell

__all__ = ["CudaEngine", "CudaState"]

_LOG = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CAPABILITY = (8, 0)
_PROMPT_GRAPHS = 8  # shapes of prompts whose launches are kept


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise Unsupported(f"the model is on {device.type}; move it with model.to('cuda')")
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY:
        raise Unsupported(
            f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}; the kernels need 8.0 "
            "(Ampere) or later"
        )


Keep = Callable[[str | Path, "CudaState"], None]
"""Writes a state to a file."""


class CudaState:
    """What the model remembers of a batch of sequences: their slots, held until the state is gone or stepped.

    Args:
        pool: whose slots they are; already held for this state.
        slots: of each row.
        positions: tokens that each row has seen.
        keep: writes records of all rows to a file.
    """

    def __init__(self, pool: Slots, slots: list[int], positions: list[int], keep: Keep) -> None:
        self._pool, self._slots, self.positions, self._keep = pool, slots, positions, keep
        self._stepped = False

    def __del__(self) -> None:
        if not self._stepped:
            self._pool.release(self._slots)

    @property
    def slots(self) -> list[int]:
        """The slot of each row.

        Raises:
            InputError: the state was stepped, so its slots hold a later position.
        """
        if self._stepped:
            raise InputError(
                "this state was given to step, which goes on in its memory; "
                "use the state that step returned, or fork() before the step to go on from here twice"
            )
        return self._slots

    @property
    def nbytes(self) -> int:
        """Bytes at rest, all sequences together."""
        return len(self.slots) * self._pool.slot_bytes

    def fork(self) -> CudaState:
        """Return a state that goes on independently of this one; memory is shared until one is stepped."""
        self._pool.hold(self.slots)
        return CudaState(self._pool, list(self.slots), list(self.positions), self._keep)

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which any engine of the same model goes on from (`CudaEngine.load_state`).

        Args:
            path: the file; one that is there is replaced.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._keep(path, self)

    def select(self, rows: Tensor) -> CudaState:
        """Return the state of some sequences of the batch, renumbered in the given order.

        Args:
            rows: int64, distinct indices.
        """
        kept = rows.tolist()
        slots = [self.slots[row] for row in kept]
        self._pool.hold(slots)
        return CudaState(self._pool, slots, [self.positions[row] for row in kept], self._keep)

    def hand_over(self) -> list[int]:
        """Return the slots; whoever takes them holds them from now on, and this state is no longer good."""
        slots = self.slots
        self._stepped = True
        return slots


@dataclass
class _Bucket:
    """A captured step for a number of rows, and what it reads and writes.

    Attributes:
        graph: the step.
        ids: int64 ``[rows]``, tokens.
        slots: int32 ``[rows]``.
        advance: int32 ``[rows]``, 1 for a row of the batch and 0 for one that fills up.
        logits: float32 ``[rows, vocab]``.
        of: the slots that ``slots`` holds now.
    """

    graph: torch.cuda.CUDAGraph
    ids: Tensor
    slots: Tensor
    advance: Tensor
    logits: Tensor
    of: list[int]


@dataclass
class _Prompts:
    """Captured reading of prompts of one shape."""

    graph: torch.cuda.CUDAGraph
    ids: Tensor
    slots: Tensor
    logits: Tensor


class CudaEngine:
    """Runs a model on a GPU; the interface is that of `runtime.engine.Engine`.

    Args:
        network: the model, on the GPU.
        shell: the model that it was made of, for saved states; None for one that has none.
        identity: gives the digest of the model, for saved states.
        reason: why the model is run stage by stage; empty where it has kernels of codes throughout.

    Attributes:
        graph_bytes: what PyTorch reserved for captured launches: their results and everything between.
    """

    def __init__(
        self,
        network: Network | Stages,
        shell: Shell | None = None,
        identity: Callable[[], str] = lambda: "",
        reason: str = "",
    ) -> None:
        self.network, self.shell, self.identity, self.reason = network, shell, identity, reason
        assert isinstance(network.mixers, (Mamba1Layers, Mamba2Layers, StageLayers))
        self.mixers = network.mixers
        self.pool = Slots(self.mixers.memory, network.device, self._forget_graphs)
        self.launches = Launches(network, self.pool)
        self._buckets: dict[int, _Bucket] = {}
        self._prompts: dict[tuple[int, int], _Prompts | None] = {}
        self._stream = torch.cuda.Stream(network.device)
        self.graph_bytes = 0

    @classmethod
    def of(cls, shell: Shell, *, identity: Callable[[], str] = lambda: "") -> CudaEngine:
        """Return the engine of a model.

        Args:
            shell: the model, on a GPU.
            identity: gives its digest, for saved states.

        Raises:
            Unsupported: the reason why there is none.
        """
        _check_device(shell.device)
        try:
            return cls(network_of(shell), shell, identity)
        except Unsupported as why:
            try:
                stages = stages_of(shell)
            except Unsupported as other:
                raise Unsupported(f"{why}; and stage by stage, {other}") from None
            reason = f"stage by stage in graphs: {why}"
        _LOG.info("the model runs %s", reason)
        return cls(stages, shell, identity, reason)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, CudaState]:
        """Read prompts, which may differ in length.

        Args:
            prompts: tokens of each sequence; at least one each.

        Returns:
            float32 logits ``[B, vocab]`` after the last token of each, and the state.
        """
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"prompt {index} has no tokens; begin it with the model's first token")
            self._check_tokens(min(prompt), max(prompt))
        device = self.network.device
        state = self._state(self.pool.take(len(prompts)), [len(prompt) for prompt in prompts])
        logits = torch.empty(len(prompts), self.network.vocab, device=device)
        for rows, length in _groups(state.positions):
            ids = torch.tensor([list(prompts[row]) for row in rows], device=device)
            slots = torch.tensor([state.slots[row] for row in rows], dtype=torch.int32, device=device)
            logits[rows] = self._read_kept(ids, slots, length)
        return logits, state

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of every position; no state is kept.

        Args:
            ids: int64 ``[B, L]``, sequences of one length, on any device.

        Returns:
            float32 ``[B, L, vocab]``.
        """
        ids = ids.to(self.network.device)
        slots = self.pool.take(len(ids))
        try:
            parts = [
                self.launches.logits(residual.flatten(0, 1)).unflatten(0, (len(ids), -1))
                for residual in self.launches.pieces(ids, self._upload(slots))
            ]
        finally:
            self.pool.release(slots)
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: CudaState) -> tuple[Tensor, CudaState]:
        """Read one more token of each sequence.

        Args:
            tokens: int64 ``[B]``.
            state: of the tokens before. Its memory goes over to the new state: fork it before if it is needed again.

        Returns:
            float32 logits ``[B, vocab]`` and the new state.

        Raises:
            InputError: the state was stepped before or has another batch size, or a token on the CPU is outside of the
                vocabulary (one on the GPU is not looked at: that would be to wait for it).
        """
        if len(tokens) != len(state.slots):
            raise InputError(
                f"engine: tokens for {len(tokens)} sequences were given, the state has {len(state.slots)}; give one a "
                "sequence"
            )
        if not tokens.is_cuda:
            self._check_tokens(int(tokens.min()), int(tokens.max()))
        slots = self.pool.alone(state.hand_over())
        after = self._state(slots, [position + 1 for position in state.positions])
        parts = []
        for first in range(0, len(slots), BUCKETS[-1]):
            part = slots[first : first + BUCKETS[-1]]
            bucket = self._bucket(next(size for size in BUCKETS if size >= len(part)), part)
            self._aim(bucket, part)
            bucket.ids[: len(part)] = tokens[first : first + len(part)]
            bucket.graph.replay()
            parts.append(bucket.logits[: len(part)])
        self.round_due(after)
        return torch.cat(parts), after

    def round_due(self, state: CudaState) -> None:
        """Round the states of those rows whose interval is full."""
        interval = self.mixers.interval
        if interval < 2:
            return
        due = [
            slot
            for slot, position in zip(state.slots, state.positions, strict=True)
            if position % interval == 0
        ]
        if due:
            self.mixers.round(self._upload(due), self.pool.tensors)

    def _check_tokens(self, smallest: int, largest: int) -> None:
        if smallest < 0 or largest >= self.network.vocab:
            raise InputError(
                f"engine: tokens {smallest} to {largest} were given, the vocabulary has {self.network.vocab}; use the "
                "tokenizer of this model"
            )

    # States

    def _state(self, slots: list[int], positions: list[int]) -> CudaState:
        return CudaState(self.pool, slots, positions, self._save)

    def _save(self, path: str | Path, state: CudaState) -> None:
        records = [
            to_record(self.mixers, self.pool.tensors, slot, tokens)
            for slot, tokens in zip(state.slots, state.positions, strict=True)
        ]
        write_state(path, records, identity=self.identity())

    def load_state(self, path: str | Path) -> CudaState:
        """Return the state that ``save`` of any engine's state of the same model wrote.

        Args:
            path: the file.

        Raises:
            CheckpointError: it is missing, damaged, or of another model.
        """
        assert self.shell is not None, "an engine of a model"
        return self._restored(read_state(path, self.shell, identity=self.identity()))

    def _restored(self, records: Sequence[SequenceRecord]) -> CudaState:
        state = self._state(self.pool.take(len(records)), [record.tokens for record in records])
        for slot, record in zip(state.slots, records, strict=True):
            from_record(self.mixers, self.pool.tensors, slot, record)
            self.pool.positions[slot] = record.tokens
        return state

    # Prompts

    def _read_kept(self, ids: Tensor, slots: Tensor, length: int) -> Tensor:
        """Return the logits of prompts of one length, from launches kept of a prompt of the same shape if there are."""
        shape = (ids.shape[0], ids.shape[1])
        if ids.numel() > PIECE:
            return self.launches.read(ids, slots)
        if shape not in self._prompts:  # seen once is not yet common
            self._prompts[shape] = None
            return self.launches.read(ids, slots)
        kept = self._prompts[shape]
        if kept is None:
            if sum(prompt is not None for prompt in self._prompts.values()) >= _PROMPT_GRAPHS:
                return self.launches.read(ids, slots)
            kept = self._prompts[shape] = self.capture_prompts(ids, slots)
        kept.ids.copy_(ids)
        kept.slots.copy_(slots)
        kept.graph.replay()
        return kept.logits.clone()

    @torch.no_grad()
    def capture_prompts(self, ids: Tensor, slots: Tensor) -> _Prompts:
        """Return the captured reading of prompts of a shape, after running it once."""
        ids, slots = ids.clone(), slots.clone()
        graph, logits = self._captured(
            f"{ids.shape[0]} prompts of {ids.shape[1]} tokens", lambda: self.launches.read(ids, slots)
        )
        return _Prompts(graph, ids, slots, logits)

    # Steps

    def _aim(self, bucket: _Bucket, slots: list[int]) -> None:
        """Let a bucket's rows be these slots."""
        if bucket.of == slots:
            return
        spare = len(bucket.ids) - len(slots)
        bucket.slots.copy_(self._upload(slots + [self.pool.spare] * spare if spare else slots))
        bucket.advance.copy_(self._upload([1] * len(slots) + [0] * spare))
        bucket.of = list(slots)

    def _upload(self, numbers: list[int]) -> Tensor:
        pinned = torch.tensor(numbers, dtype=torch.int32).pin_memory()
        return pinned.to(self.network.device, non_blocking=True)

    def _bucket(self, rows: int, slots: list[int]) -> _Bucket:
        """Return the captured step of so many rows, captured on these slots, at most as many, if it was not before."""
        warm = slots if self.mixers.repeatable else []
        if len(warm) < rows:  # now, since the pool may move
            warm = warm + [self.pool.spare] * (rows - len(warm))
        if rows not in self._buckets:
            device = self.network.device
            ids = torch.zeros(rows, dtype=torch.int64, device=device)
            on = self._upload(warm)
            advance = torch.zeros(rows, dtype=torch.int32, device=device)
            graph, logits = self._captured(
                f"a step of {rows} rows", lambda: self.launches.step(ids, on, advance)
            )
            self._buckets[rows] = _Bucket(graph, ids, on, advance, logits, [])
        return self._buckets[rows]

    def _captured(self, what: str, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return the captured launches of work and its result; before that it runs once, which compiles kernels."""
        device = self.network.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(device).wait_stream(self._stream)
        before = torch.cuda.memory_reserved(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = work()
        taken = torch.cuda.memory_reserved(device) - before
        self.graph_bytes += taken
        _LOG.info("captured %s; its graph holds %.1f MB", what, taken / 1e6)
        return graph, result

    def _forget_graphs(self) -> None:
        """Drop captured launches: the pool that they write to has moved."""
        self._buckets.clear()
        self._prompts.clear()
        self.graph_bytes = 0


def _groups(lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Yield rows of equal length, and the length."""
    for length in sorted(set(lengths)):
        yield [row for row, of_row in enumerate(lengths) if of_row == length], length
