"""Text generation over any engine with `prefill` and `step`.

Prompts of unequal length run as one batch; each gets the text that it would get alone. Left out: scheduling
of requests that arrive later, and everything about models (that is the engine's).

    generate(model.engine(), model.tokenizer, ["Once upon a time"], max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.runtime.sampling import Sampling, check_drawn, draw
from ssmquant.runtime.stream import Decoder, Detokenizer, StopScanner

__all__ = ["Generation", "StepEngine", "StepState", "Stream", "Tokenizer", "generate"]

Stream = Callable[[int, str], None]
"""Called with the index of the prompt and a piece of its text, as soon as the piece is certain."""


class StepState(Protocol):
    """What an engine remembers of a batch of sequences."""

    def select(self, rows: Tensor, /) -> Self:
        """Return the state of the rows with these indices, int64 [R], in that order."""


State = TypeVar("State", bound=StepState)


class StepEngine(Protocol[State]):
    """What generation needs of an engine; rows must not influence one another."""

    def prefill(self, prompts: list[list[int]], /) -> tuple[Tensor, State]:
        """Return the logits after the last token of each prompt, float32 [B, V], and the state."""

    def step(self, tokens: Tensor, state: State, /) -> tuple[Tensor, State]:
        """Append `tokens`, int64 [B]; return the logits after them, float32 [B, V], and the new state."""


class Tokenizer(Decoder, Protocol):
    """The part of a transformers tokenizer that generation needs."""

    bos_token_id: Any
    eos_token_id: Any

    def encode(self, text: str, /) -> list[int]:
        """Return the token ids of `text`."""


class Generation(NamedTuple):
    """What followed one prompt.

    Attributes:
        text: without the prompt, stop tokens and anything from a stop string on.
        token_ids: all tokens that were generated, those of the stop included.
        finish_reason: "stop" at a stop token or stop string, "length" after max_new_tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


@dataclass
class _Row:
    """One prompt on its way."""

    index: int  # of the prompt
    history: list[int]  # prompt, then generated
    prompt_length: int
    generator: torch.Generator
    detokenizer: Detokenizer
    scanner: StopScanner
    pieces: list[str] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None

    def accept(self, token: int, stop_token_ids: Collection[int], max_new_tokens: int) -> str:
        """Append a token; return the text that became certain. Sets `finish_reason` at the end."""
        self.history.append(token)
        is_stop_token = token in stop_token_ids
        piece = "" if is_stop_token else self.scanner.push(self.detokenizer.push(token))
        at_end = is_stop_token or len(self.history) - self.prompt_length == max_new_tokens
        if at_end:
            piece += self.scanner.push(self.detokenizer.flush()) + self.scanner.flush()
        if is_stop_token or self.scanner.stopped:
            self.finish_reason = "stop"
        elif at_end:
            self.finish_reason = "length"
        self.pieces.append(piece)
        return piece


def generate(
    engine: StepEngine[State],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Collection[int] | None = None,
    stream: Stream | None = None,
) -> list[Generation]:
    """Continue each prompt.

    Args:
        engine: runs the model.
        tokenizer: a transformers tokenizer, or anything with its `encode`, `decode` and special token ids.
        prompts: texts; an empty one stands for the begin-of-text token, or else the end-of-text token.
        max_new_tokens: at most so many tokens a prompt, at least 1.
        sampling: how tokens are chosen; None is greedy.
        stop: a string or strings that end a text; they are cut out, also when they span tokens.
        stop_token_ids: tokens that end a text; None is the end-of-text token of the tokenizer.
        stream: called with (index of the prompt, piece of text); the pieces of a prompt joined are its text.
            A piece has whole characters only and never the beginning of a stop string.

    Returns:
        A `Generation` for each prompt, in order.

    Raises:
        InputError: when max_new_tokens is below 1, a stop string is empty, or a prompt gives no token and the
            tokenizer has neither a begin-of-text nor an end-of-text token.
    """
    if max_new_tokens < 1:
        raise InputError(f"generate: max_new_tokens={max_new_tokens} asks for no text; use at least 1")
    if not prompts:
        return []
    sampling = sampling or Sampling()
    if stop_token_ids is None:
        stop_token_ids = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    rows = [_start(index, prompt, tokenizer, sampling, stop) for index, prompt in enumerate(prompts)]
    running = rows
    logits, state = engine.prefill([list(row.history) for row in rows])
    while True:
        tokens = draw(logits, [row.history for row in running], sampling, [row.generator for row in running])
        on_host = tokens.tolist()  # the only wait for the device in a step
        check_drawn(on_host)
        for row, token in zip(running, on_host, strict=True):
            piece = row.accept(token, stop_token_ids, max_new_tokens)
            if piece and stream is not None:
                stream(row.index, piece)
        going_on = [place for place, row in enumerate(running) if row.finish_reason is None]
        if not going_on:
            return [_finish(row) for row in rows]
        if len(going_on) < len(running):
            running = [running[place] for place in going_on]
            kept = torch.tensor(going_on, device=tokens.device)
            tokens, state = tokens[kept], state.select(kept)
        logits, state = engine.step(tokens, state)


def _start(
    index: int, prompt: str, tokenizer: Tokenizer, sampling: Sampling, stop: str | Sequence[str]
) -> _Row:
    ids = list(tokenizer.encode(prompt)) or _empty_prompt(tokenizer)
    return _Row(
        index=index,
        history=ids,
        prompt_length=len(ids),
        generator=sampling.generator(),
        detokenizer=Detokenizer(tokenizer, ids),
        scanner=StopScanner(stop),
    )


def _empty_prompt(tokenizer: Tokenizer) -> list[int]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise InputError(
        "generate: the prompt is empty, and the tokenizer has neither a begin-of-text nor an end-of-text "
        "token to start from; give a prompt with at least one character"
    )


def _finish(row: _Row) -> Generation:
    assert row.finish_reason is not None
    return Generation("".join(row.pieces), tuple(row.history[row.prompt_length :]), row.finish_reason)
