"""Our mixers under transformers' forward signature: cache, left padding, beam reordering.

Rows of a batch that are padded by different amounts are run apart, each from its own first token, so that a row gives
the same result in a batch as alone. Their states live in the layer of transformers' cache that the mixer belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.modules.mamba1 import Mamba1Dims, Mamba1Mixer
from ssmquant.modules.mamba2 import Mamba2Dims, Mamba2Mixer
from ssmquant.modules.mixer import LayerSchemes, Mixer

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from ssmquant.families.cache import StateLayer

__all__ = ["make_mixer"]


def _padding_groups(batch: int, mask: Tensor | None) -> list[tuple[Tensor, int]]:
    """Return (rows, tokens of left padding) for each amount of padding in the batch."""
    if mask is None:
        return [(torch.arange(batch), 0)]
    mask = mask.bool()
    padding = (~mask).sum(dim=1)
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) >= padding[:, None]):
        raise InputError(
            "the attention mask must be left padding (zeros, then ones); pad prompts on the left"
        )
    return [(torch.nonzero(padding == p).flatten(), int(p)) for p in padding.unique()]


class _ShellForward:
    """Mixin: the forward that transformers' blocks call."""

    layer_idx: int

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the mixer's output ``[B, L, d_model]`` and keep its states in the cache.

        Args:
            hidden_states: float ``[B, L, d_model]``.
            cache_params: transformers' cache, or None.
            attention_mask: ``[B, L]``, zeros on left padding, or None.
        """
        assert isinstance(self, Mixer)
        layer = self._layer(cache_params)
        batch, length, _width = hidden_states.shape
        if layer is not None and layer.groups:
            groups = [(rows, 0, state) for rows, state in layer.groups]
        else:
            groups = [
                (rows, start, self.initial_state(len(rows), hidden_states.dtype))
                for rows, start in _padding_groups(batch, attention_mask)
            ]
        if len(groups) == 1 and groups[0][1] == 0:
            output = self.mix(hidden_states, groups[0][2])
        else:
            output = torch.zeros_like(hidden_states)
            for rows, start, state in groups:
                if start < length:
                    output[rows, start:] = self.mix(hidden_states[rows, start:], state)
        if layer is not None:
            layer.groups = [(rows, state) for rows, _start, state in groups]
            layer.has_previous_state[0] = True
        return output

    def _layer(self, cache: Cache | None) -> StateLayer | None:
        if cache is None:
            return None
        from ssmquant.families.cache import StateLayer  # transformers is here already if it has made a cache

        layer = cache.layers[self.layer_idx]
        if not isinstance(layer, StateLayer):
            layer = cache.layers[self.layer_idx] = StateLayer()
        return layer


class _ShellMamba1(_ShellForward, Mamba1Mixer):  # type: ignore[misc]  # transformers' signature
    """Mamba-1 mixer for transformers' blocks."""


class _ShellMamba2(_ShellForward, Mamba2Mixer):  # type: ignore[misc]  # transformers' signature
    """Mamba-2 mixer for transformers' blocks."""


def make_mixer(dims: Mamba1Dims | Mamba2Dims, layer: LayerSchemes, layer_idx: int) -> Mixer:
    """Return the mixer for these dimensions, callable by transformers' block number ``layer_idx``."""
    mixer = _ShellMamba1(dims, layer) if isinstance(dims, Mamba1Dims) else _ShellMamba2(dims, layer)
    mixer.layer_idx = layer_idx
    return mixer
