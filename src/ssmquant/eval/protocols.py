"""What evaluation needs of its partners: any object of these shapes can be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

__all__ = ["Logits", "Progress", "Tokenizer"]

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


class Logits(Protocol):
    """A model, seen as a function from tokens to logits."""

    @property
    def name(self) -> str:
        """How results call the model."""

    def logits(self, ids: Tensor) -> Tensor:
        """Return float32 logits [B, L, V] of int64 tokens [B, L]; causal, rows independent."""


class Tokenizer(Protocol):
    """A tokenizer; those of transformers fit."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
