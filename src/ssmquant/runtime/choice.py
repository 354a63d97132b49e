"""Which engine runs a model: the one for its device where there is one, or the stages one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from ssmquant.families import Shell
from ssmquant.ops.registry import forced_backend
from ssmquant.runtime.engine import Engine

__all__ = ["AnyEngine", "AnyState", "ReadsAll", "choose"]

_LOG = logging.getLogger(__name__)


class AnyState(Protocol):
    """What any engine remembers of a batch of sequences."""

    @property
    def nbytes(self) -> int:
        """Bytes at rest, all sequences together."""

    def fork(self) -> Self:
        """Return a state that goes on independently of this one."""

    def select(self, rows: Tensor, /) -> Self:
        """Return the state of the rows with these indices, int64, in that order."""


class AnyEngine(Protocol):
    """What any engine can do; see `ssmquant.runtime.engine.Engine`."""

    @property
    def reason(self) -> str:
        """Why the model is not run by an engine for its device; empty if it is."""

    def prefill(self, prompts: Sequence[Sequence[int]], /) -> tuple[Tensor, AnyState]:
        """Read prompts; return float32 logits ``[B, vocab]`` after the last token of each, and the state."""

    def step(self, tokens: Tensor, state: Any, /) -> tuple[Tensor, AnyState]:
        """Read one more token of each sequence, int64 ``[B]``; return logits ``[B, vocab]`` and the new state."""


@runtime_checkable
class ReadsAll(Protocol):
    """An engine that gives the logits of every position, not of the last alone."""

    def logits(self, ids: Tensor, /) -> Tensor:
        """Return float32 ``[B, L, vocab]`` of int64 ``[B, L]``."""


def choose(
    shell: Shell, *, identity: Callable[[], str], threads: int | None, keep_weights: bool
) -> AnyEngine:
    """Return the fastest engine that can run a model where it is.

    Args:
        shell: the model.
        identity: gives the digest of the model, for saved states.
        threads: of an engine on the CPU; None for its default.
        keep_weights: False lets an engine drop the model's weights as it packs them.
    """
    device = shell.device.type
    if forced_backend() is not None:
        reason = f"the backend {forced_backend()!r} was asked for"
    elif device == "cuda":
        try:
            from ssmquant.runtime.cuda import CudaEngine, Unsupported
        except ImportError as error:
            reason = f"the GPU engine needs Triton: {error}"
        else:
            try:
                return CudaEngine.of(shell, identity=identity)
            except Unsupported as why:
                reason = str(why)
    elif device == "cpu":
        try:
            from ssmquant.runtime.native import NativeEngine, unsupported
        except ImportError as error:
            reason = str(error)
        else:
            reason = unsupported(shell) or ""
            if not reason:
                return NativeEngine(shell, identity=identity, threads=threads, keep_weights=keep_weights)
    else:
        reason = f"there is no engine for {device}"
    _LOG.info("the model runs stage by stage, without an engine for its device: %s", reason)
    return Engine(shell, identity=identity, reason=reason)
