"""`MixerState`: what one mixer remembers between tokens, at rest as its schemes say.

    conv     [B, channels, d_conv]   the newest inputs of the convolution, codes or float
    ssm      [B, …, d_state]         the recurrent state: float32, float16 or int8 codes
    pending  x, B, C, dt             for a reduced state: the tokens since it was last rounded (see ops.recurrent_state)

The scales are the model's and not kept here. All rows of one state are at the same position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmquant.modules.activation import QTensor

__all__ = ["MixerState", "join_tokens"]


@dataclass
class MixerState:
    """State of one mixer for a batch of sequences; a mixer replaces its tensors, it never writes into them.

    Attributes:
        conv: newest inputs of the convolution ``[B, channels, d_conv]``.
        ssm: recurrent state ``[B, H, P, N]`` (Mamba-2) or ``[B, d_inner, N]`` (Mamba-1).
        pending: scan inputs ``[B, tokens, …]`` since the last rounding; empty for a float32 state.
    """

    conv: Tensor
    ssm: Tensor
    pending: tuple[QTensor, ...] = ()

    def fork(self) -> MixerState:
        """Return a state that goes on independently (tensors are shared: none is ever written in place)."""
        return MixerState(self.conv, self.ssm, self.pending)

    def rows(self, index: Tensor) -> MixerState:
        """Return the rows ``index`` (int64) as a state of their own."""
        pending = tuple(
            QTensor(p.data[index], p.scale if p.scale is None or p.scale.dim() == 1 else p.scale[index])
            for p in self.pending
        )
        return MixerState(self.conv[index], self.ssm[index], pending)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors at rest: those above, and the scales of pending tokens that have their own."""
        scales = (p.scale for p in self.pending if p.scale is not None and p.scale.dim() > 1)
        return sum(t.nbytes for t in (self.conv, self.ssm, *(p.data for p in self.pending), *scales))


def join_tokens(before: Sequence[QTensor], now: Sequence[QTensor]) -> tuple[QTensor, ...]:
    """Return scan inputs with the pending tokens put before the new ones."""
    if not before:
        return tuple(now)
    return tuple(
        QTensor(
            torch.cat([old.data, new.data], dim=1),
            new.scale
            if old.scale is None or new.scale is None or new.scale.dim() == 1
            else torch.cat([old.scale, new.scale], dim=1),
        )
        for old, new in zip(before, now, strict=True)
    )
