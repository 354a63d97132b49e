"""`NativeEngine`: prefill and decode in the compiled extension."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError
from ssmquant.families import Shell
from ssmquant.ops.native import native
from ssmquant.runtime.native.packing import pack
from ssmquant.runtime.native.records import from_record, to_record
from ssmquant.runtime.state_file import read_state, write_state

__all__ = ["NativeEngine", "NativeState"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeState:
    """What the model remembers of a batch of sequences: immutable, so forking and selecting copy nothing.

    Attributes:
        engine: the engine that it belongs to.
        sequences: what the extension keeps of each.
    """

    engine: NativeEngine
    sequences: tuple[Any, ...]

    @property
    def tokens(self) -> list[int]:
        """How many tokens each sequence has seen."""
        return [int(sequence.tokens) for sequence in self.sequences]

    @property
    def nbytes(self) -> int:
        """Bytes at rest, all sequences together."""
        return sum(int(self.engine.model.state_bytes(sequence)) for sequence in self.sequences)

    def fork(self) -> NativeState:
        """Return a state that goes on independently of this one: itself, since no state ever changes."""
        return self

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which any engine of the same model goes on from (`NativeEngine.load_state`).

        Args:
            path: the file; one that is there is replaced.

        Raises:
            CheckpointError: it cannot be written.
        """
        records = [to_record(self.engine.model, self.engine.shell, sequence) for sequence in self.sequences]
        write_state(path, records, identity=self.engine.identity())

    def select(self, rows: Tensor) -> NativeState:
        """Return the state of some sequences of the batch, renumbered in the given order.

        Args:
            rows: int64 indices.
        """
        return NativeState(self.engine, tuple(self.sequences[row] for row in rows.tolist()))


class NativeEngine:
    """Runs a model of static int8 or float activations in the compiled extension; safe to use from several threads.

    Args:
        shell: a model on the CPU that `unsupported` has nothing against.
        identity: gives the digest of the model, for saved states.
        threads: how many; by default ``SSMQUANT_THREADS``, or one a processor core.
        keep_weights: False drops the shell's own weights as they are packed: it cannot run without this engine
            then. Weights that are pages of a file take no memory anyway.

    Attributes:
        model: the extension's model.
        packing_seconds: time that packing the weights took.
    """

    reason = ""
    """Why a slower engine runs the model: it does not."""

    def __init__(
        self,
        shell: Shell,
        *,
        identity: Callable[[], str] = lambda: "",
        threads: int | None = None,
        keep_weights: bool = True,
    ) -> None:
        self.shell = shell
        self.identity = identity
        if threads is not None and threads < 1:
            raise InputError(f"engine: {threads} threads were asked for; use 1 or more")
        start = time.perf_counter()
        try:
            self.model: Any = pack(shell, native.thread_pool(threads), keep_weights=keep_weights)
        except MemoryError as error:
            raise SsmquantError(
                "engine: there is not enough memory for the packed weights; close other programs, or take a "
                "smaller model or one with 4-bit weights"
            ) from error
        self.packing_seconds = time.perf_counter() - start
        _LOG.info(
            "the model runs on the CPU engine (%s): %.1f MB of weights packed in %.2f s",
            native.isa(), self.weight_bytes / 1e6, self.packing_seconds,
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        return int(self.model.vocab)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, which a step reads."""
        return int(self.model.bytes)

    def prefill(
        self, prompts: Sequence[Sequence[int]], state: NativeState | None = None
    ) -> tuple[Tensor, NativeState]:
        """Read prompts, which may differ in length.

        Args:
            prompts: tokens of each sequence; at least one each.
            state: of the tokens before, a sequence for each prompt; it is not changed. None: all start here.

        Returns:
            float32 logits ``[B, vocab]`` after the last token of each, and the state.

        Raises:
            InputError: a prompt is empty, has a token outside the vocabulary, or the state has another batch size.
        """
        logits = torch.empty(len(prompts), self.vocab_size)
        return logits, self._prefill(prompts, state, False, logits)

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of every position; no state is kept.

        Args:
            ids: int64 ``[B, L]``, sequences of one length without padding.

        Returns:
            float32 ``[B, L, vocab]``.
        """
        logits = torch.empty(*ids.shape, self.vocab_size)
        self._prefill(ids.tolist(), None, True, logits)
        return logits

    def load_state(self, path: str | Path) -> NativeState:
        """Return the state that ``save`` of any engine's state of the same model wrote.

        Args:
            path: the file.

        Raises:
            CheckpointError: it is missing, damaged, or of another model.
        """
        records = read_state(path, self.shell, identity=self.identity())
        return NativeState(self, tuple(from_record(self.model, self.shell, record) for record in records))

    def step(self, tokens: Tensor, state: NativeState) -> tuple[Tensor, NativeState]:
        """Read one more token of each sequence.

        Args:
            tokens: int64 ``[B]``.
            state: of the tokens before; it is not changed.

        Returns:
            float32 logits ``[B, vocab]`` and the new state.

        Raises:
            InputError: a token is outside the vocabulary, or the state has another batch size.
        """
        self._check(state, len(tokens))
        logits = torch.empty(len(tokens), self.vocab_size)
        ids = tokens.to("cpu", torch.int64).contiguous()
        return logits, self._run(lambda: self.model.step(ids, state.sequences, logits))

    def _prefill(
        self, prompts: Sequence[Sequence[int]], state: NativeState | None, all_positions: bool, logits: Tensor
    ) -> NativeState:
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"prompt {index} has no tokens; begin it with the model's first token")
        if state is None:
            sequences: tuple[Any, ...] = tuple(native.SequenceState() for _ in prompts)
        else:
            self._check(state, len(prompts))
            sequences = state.sequences
        return self._run(lambda: self.model.prefill(prompts, sequences, all_positions, logits))

    def _check(self, state: NativeState, rows: int) -> None:
        if state.engine is not self:
            raise InputError("engine: the state is another engine's; save it there and load it here")
        if len(state.sequences) != rows:
            raise InputError(
                f"engine: tokens for {rows} sequences were given, the state has {len(state.sequences)}; "
                "give one a sequence"
            )

    def _run(self, call: Callable[[], list[Any]]) -> NativeState:
        try:
            return NativeState(self, tuple(call()))
        except IndexError as error:
            raise InputError(f"engine: {error}; use the tokenizer of this model") from error
        except MemoryError as error:
            raise SsmquantError(
                "engine: there is not enough memory for this batch; use fewer sequences"
            ) from error
