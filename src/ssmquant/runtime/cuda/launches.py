"""Everything that is launched for prompts and for steps, in order: what a graph captures, and what runs without one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.runtime.cuda.mamba1 import Mamba1Layers
from ssmquant.runtime.cuda.mamba2 import Mamba2Layers
from ssmquant.runtime.cuda.network import Network
from ssmquant.runtime.cuda.slots import Slots, free_bytes
from ssmquant.runtime.cuda.stages import StageLayers, Stages

__all__ = ["PIECE", "Launches"]

PIECE = 16384
"""Tokens of prompts that are read at once."""


class Launches:
    """A network and the pool of its sequences' memory.

    Args:
        network: the model.
        pool: where sequences are kept.
    """

    def __init__(self, network: Network | Stages, pool: Slots) -> None:
        assert isinstance(network.mixers, (Mamba1Layers, Mamba2Layers, StageLayers))
        self.network, self.mixers, self.pool = network, network.mixers, pool

    def read(self, ids: Tensor, slots: Tensor) -> Tensor:
        """Read prompts of one length from their beginning.

        Args:
            ids: int64 ``[B, L]``.
            slots: int32 ``[B]``, written; their positions too.

        Returns:
            float32 logits ``[B, vocab]`` after the last token.

        Raises:
            InputError: the GPU has not the memory for it.
        """
        for residual in self.pieces(ids, slots):
            last = residual
        return self.logits(last[:, -1].contiguous())

    def pieces(self, ids: Tensor, slots: Tensor) -> Iterator[Tensor]:
        """Yield the residual ``[B, tokens, d_model]`` after all layers, piece by piece; arguments as for `read`."""
        batch, length = ids.shape
        unit = max(self.mixers.interval, 64)
        unit = unit if unit % 64 == 0 else unit * 64
        piece = max(PIECE // batch // unit, 1) * unit
        needed = self.mixers.prompt_bytes(batch * min(piece, length), batch) + 8 * batch * self.network.vocab
        if ids.is_cuda and not torch.cuda.is_current_stream_capturing() and needed > free_bytes(ids.device):
            raise InputError(
                f"reading {batch} prompts of {length} tokens needs {needed / 1e9:.2f} GB on the GPU, and "
                f"{free_bytes(ids.device) / 1e9:.2f} GB are free; run fewer prompts at once"
            )
        positions = self.pool.positions
        positions.index_fill_(0, slots.long(), 0)
        for start in range(0, length, piece):
            part = ids[:, start : start + piece]
            residual = self.network.embedding(part).flatten(0, 1)
            self.mixers.read(residual, batch, slots, positions, start, self.pool.tensors)
            positions.index_fill_(0, slots.long(), start + part.shape[1])
            yield residual.unflatten(0, (batch, -1))

    def step(self, ids: Tensor, slots: Tensor, advance: Tensor) -> Tensor:
        """Read one more token of each row.

        Args:
            ids: int64 ``[M]``.
            slots: int32 ``[M]``, updated.
            advance: int32 ``[M]``, how far each row's position goes on: 1, or 0 for one that fills up a bucket.

        Returns:
            float32 logits ``[M, vocab]``.
        """
        residual = self.network.embedding(ids)
        self.mixers.step(residual, slots, self.pool.positions, self.pool.tensors)
        logits = self.logits(residual)
        self.pool.positions.index_add_(0, slots, advance)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[M, vocab]`` of a residual ``[M, d_model]``."""
        return self.network.logits(hidden)
