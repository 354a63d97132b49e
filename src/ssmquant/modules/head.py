"""`Head`: the language-model head, with weights of its own or those of the embedding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ssmquant.modules.activation import Activation
from ssmquant.modules.weights import Embedding, Linear
from ssmquant.scheme import TensorScheme

__all__ = ["Head"]


class Head(nn.Module):
    """Logits ``[..., d_model] -> [..., vocab]``.

    Args:
        d_model: size of the hidden.
        vocab: size of the vocabulary.
        input_scheme: of the hidden that enters (site ``lm_head.input``).
        weight_scheme: of the weight (site ``lm_head.weight``); ignored for tied weights.
        tied_to: the embedding whose table is the weight, or None.
    """

    def __init__(
        self,
        d_model: int,
        vocab: int,
        *,
        input_scheme: TensorScheme,
        weight_scheme: TensorScheme,
        tied_to: Embedding | None,
    ) -> None:
        super().__init__()
        self.input = Activation({"d_model": d_model}, input_scheme)
        self.linear = None if tied_to else Linear(d_model, vocab, bias=False, scheme=weight_scheme)
        # In a list, so that the embedding is not registered (and stored) a second time.
        self._table = [tied_to] if tied_to else []
        self._shape = (vocab, d_model)

    @property
    def weight(self) -> Tensor:
        """A float tensor without data: transformers' forward casts the hidden to ``lm_head.weight.dtype``."""
        return torch.empty(self._shape, dtype=torch.float32, device="meta")

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 logits."""
        x = self.input(hidden)
        if self.linear is not None:
            return cast(Tensor, self.linear(x))
        (table,) = self._table
        return table.format.linear(table.stored, x.data, x.scale, None, None)
