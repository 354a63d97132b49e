"""The layer of transformers' cache that holds our states."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from ssmquant.errors import InputError
from ssmquant.modules.state import MixerState

__all__ = ["StateLayer"]


class StateLayer(LinearAttentionLayer):
    """A layer of transformers' cache that holds our states: (rows, state) for each group of rows."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[tuple[Tensor, MixerState]] = []

    def reset(self) -> None:
        """Forget every sequence."""
        self.groups = []
        self.has_previous_state = dict.fromkeys(self.has_previous_state, False)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the rows for beam search."""
        if len(self.groups) != 1:
            raise InputError(
                "beam search needs prompts of one length; run prompts of different lengths one by one"
            )
        ((_, state),) = self.groups
        self.groups = [(torch.arange(len(beam_idx)), state.rows(beam_idx))]
