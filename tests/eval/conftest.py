"""Bigram models and a byte-level tokenizer: every number of an evaluation can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
_fast_tokenizer: MakeTokenizer = PreTrainedTokenizerFast  # whose constructor is untyped


@dataclass
class Bigram:
    """A model whose logits depend on the last token alone: `table` [V, V]."""

    name: str
    table: Tensor
    tokenizer: PreTrainedTokenizerFast | None = None
    batches: list[tuple[int, ...]] = field(default_factory=list)
    prompts: list[list[str]] = field(default_factory=list)

    def logits(self, ids: Tensor) -> Tensor:
        self.batches.append(tuple(ids.shape))
        return self.table[ids]

    def generate(
        self,
        prompt: list[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Continue greedily; runs past stop strings on purpose, so that cutting at them is the caller's."""
        assert self.tokenizer is not None
        self.prompts.append(prompt)
        texts = []
        for text in prompt:
            ids = self.tokenizer.encode(text)
            for _ in range(max_new_tokens):
                ids.append(int(self.table[ids[-1]].argmax()))
            texts.append(self.tokenizer.decode(ids)[len(text) :])
        return texts


MakeBigram = Callable[..., Bigram]


@pytest.fixture(scope="session")
def make_bigram() -> MakeBigram:
    return Bigram


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, one for "xy", and the end-of-text token."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "xy"]
    byte_level = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("x", "y")]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    return _fast_tokenizer(tokenizer_object=byte_level, eos_token="<end>")


@pytest.fixture
def chain(tokenizer: PreTrainedTokenizerFast) -> Bigram:
    """Continues "the" with " ca, ca, ca, …": every character seen here has one likely successor, with logit 8."""
    table = torch.zeros(len(tokenizer), len(tokenizer))
    for last, following in pairwise(tokenizer.encode("the ca, ")):
        table[last, following] = 8.0
    return Bigram("chain", table, tokenizer)
