"""Log-likelihood of a continuation after a context, and whether greedy decoding would produce it.

What LAMBADA and multiple-choice tasks are made of. Batches are padded on the right: the models are causal, so
nothing to the right of a token reaches it. Contexts are of similar length within a batch, since requests are
sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ssmquant.errors import DataError
from ssmquant.eval.protocols import Logits, Progress, Tokenizer

__all__ = ["Continuation", "Score", "encode_pair", "score_continuations"]


class Continuation(NamedTuple):
    """Tokens to score after the tokens of a context; neither may be empty."""

    context: tuple[int, ...]
    target: tuple[int, ...]


class Score(NamedTuple):
    """What a model says about a continuation."""

    logprob: float
    """Sum over the tokens of the target, nats."""
    greedy: bool
    """Whether every token of the target is the most likely one."""


def encode_pair(tokenizer: Tokenizer, context: str, target: str) -> Continuation:
    """Tokenise a context and its continuation as lm-evaluation-harness does (`TemplateLM._encode_pair`).

    Spaces that end the context move to the target; then the context and the whole are tokenised, and the
    target is what the whole has beyond as many tokens as the context. The target is thereby split into tokens
    as in running text, also when its first characters merge with the context.
    """
    stripped = context.rstrip()
    target = context[len(stripped) :] + target
    before = tuple(tokenizer.encode(stripped))
    after = tuple(tokenizer.encode(stripped + target))[len(before) :]
    return Continuation(before, after)


def score_continuations(
    model: Logits, requests: Sequence[Continuation], *, batch: int = 16, progress: Progress | None = None
) -> list[Score]:
    """Score each continuation; requests that share an input (choices of one token) share its forward pass.

    Args:
        model: gives the logits.
        requests: contexts and targets.
        batch: inputs in a forward pass; one float32 tensor [batch, longest, V] is held at a time.
        progress: called after each forward pass with ("score", inputs done, all inputs).

    Returns:
        The scores in the order of the requests.

    Raises:
        DataError: a context or a target without a token.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for index, (context, target) in enumerate(requests):
        if not context or not target:
            raise DataError(
                f"score: continuation {index} should have a context and a target of one token or more each, "
                f"found {len(context)} and {len(target)}; drop that item or add text"
            )
        # The last token predicts nothing that is asked for.
        sharing.setdefault(context + target[:-1], []).append(index)
    inputs = sorted(sharing, key=lambda tokens: (-len(tokens), tokens))  # longest first: memory fails at once
    scores: dict[int, Score] = {}
    for start in range(0, len(inputs), batch):
        chunk = inputs[start : start + batch]
        ids = torch.zeros(len(chunk), len(chunk[0]), dtype=torch.long)
        for row, tokens in zip(ids, chunk, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        with torch.no_grad():
            logits = model.logits(ids)
        for row, tokens in zip(logits, chunk, strict=True):
            for index in sharing[tokens]:
                expected = torch.tensor(requests[index].target, device=row.device)
                scores[index] = _score(row[len(tokens) - len(expected) : len(tokens)], expected)
        if progress is not None:
            progress("score", start + len(chunk), len(inputs))
    return [scores[index] for index in range(len(requests))]


def _score(logits: torch.Tensor, target: torch.Tensor) -> Score:
    """Score a target [T] from the logits [T, V] that predict it."""
    chosen = logits.double().log_softmax(-1).gather(-1, target.unsqueeze(-1))
    return Score(logprob=float(chosen.sum()), greedy=bool((logits.argmax(-1) == target).all()))
