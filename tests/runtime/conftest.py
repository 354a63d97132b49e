"""A byte-level tokenizer and toy engines, so that generation is tested without any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
_fast_tokenizer: MakeTokenizer = PreTrainedTokenizerFast  # whose constructor is untyped


def _byte_level(**special_tokens: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d"), ("E", "N"), ("EN", "D")]
    words = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast_tokenizer(tokenizer_object=tokenizer, **special_tokens)


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """Builds a byte-level BPE tokenizer; a Chinese character is three tokens."""
    return _byte_level


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end-of-text token."""
    return _byte_level(eos_token="<eos>")


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Llama-like: words begin with "▁", decoding drops the first space, other characters are byte tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁cat", "▁sat", "s", "o"]
    tokenizer = Tokenizer(
        models.BPE(
            {word: index for index, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast_tokenizer(tokenizer_object=tokenizer, unk_token="<unk>")


class Rows:
    """One whole number a row, as the state of the toy engines."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def select(self, rows: Tensor) -> Rows:
        return Rows(self.values[rows])


class RecurrentEngine:
    """Each row has one whole number as its state; the logits are a fixed random table of it."""

    def __init__(self, vocab_size: int, states: int = 997) -> None:
        self.table = torch.randn(states, vocab_size, generator=torch.Generator().manual_seed(5)) * 3

    def prefill(self, prompts: list[list[int]]) -> tuple[Tensor, Rows]:
        state = torch.zeros(len(prompts), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            for token in prompt:
                state[row] = self._next(torch.tensor(token), state[row])
        return self.table[state], Rows(state)

    def step(self, tokens: Tensor, state: Rows) -> tuple[Tensor, Rows]:
        values = self._next(tokens, state.values)
        return self.table[values], Rows(values)

    def _next(self, token: Tensor, state: Tensor) -> Tensor:
        return (state * 31 + token * 17 + 1) % len(self.table)


class ScriptEngine:
    """Says fixed token ids, one script a row, whatever it is fed; after the script it repeats token 0."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab_size: int) -> None:
        self.scripts = scripts
        self.vocab_size = vocab_size
        self.prompts: list[list[int]] = []
        self.rows_of_steps: list[int] = []

    def prefill(self, prompts: list[list[int]]) -> tuple[Tensor, Rows]:
        self.prompts = prompts
        state = Rows(torch.arange(len(prompts)))
        return self._logits(state), state

    def step(self, tokens: Tensor, state: Rows) -> tuple[Tensor, Rows]:
        assert tokens.shape == state.values.shape
        self.rows_of_steps.append(len(tokens))
        return self._logits(state), state

    def _logits(self, state: Rows) -> Tensor:
        position = len(self.rows_of_steps)
        logits = torch.zeros(len(state.values), self.vocab_size)
        for row, script in enumerate(self.scripts[index] for index in state.values.tolist()):
            logits[row, script[position] if position < len(script) else 0] = 9.0
        return logits


@pytest.fixture
def recurrent_engine(tokenizer: PreTrainedTokenizerFast) -> RecurrentEngine:
    return RecurrentEngine(len(tokenizer))


@pytest.fixture
def script_engine(tokenizer: PreTrainedTokenizerFast) -> Callable[..., ScriptEngine]:
    """Builds an engine that says the given texts (or token ids)."""

    def build(*scripts: str | Sequence[int]) -> ScriptEngine:
        ids = [tokenizer.encode(script) if isinstance(script, str) else script for script in scripts]
        return ScriptEngine(ids, len(tokenizer))

    return build
