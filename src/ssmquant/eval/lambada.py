"""LAMBADA: the last word of a passage, given the rest (Paperno et al., arXiv 1606.06031).

The conventions are those of the task `lambada_openai` of lm-evaluation-harness, so results compare with
published ones: the text is split at its last space, the target is that space and the last word, and a passage
counts as right when greedy decoding gives all tokens of the target. The perplexity is per word: exp of the
mean over passages of the negative log-likelihood of all tokens of the target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssmquant.errors import CheckFailed, DataError
from ssmquant.eval.continuations import encode_pair, score_continuations
from ssmquant.eval.protocols import Logits, Progress, Tokenizer
from ssmquant.eval.statistics import (
    Array,
    Interval,
    PairedTest,
    mcnemar,
    mean_interval,
    paired_test,
    proportion_interval,
)

__all__ = ["LambadaScores", "PairedLambada", "compare_lambada", "lambada", "load_lambada", "split_last_word"]


@dataclass(frozen=True, eq=False)
class LambadaScores:
    """One model on LAMBADA; arrays with an entry a passage."""

    name: str
    correct: npt.NDArray[np.bool_]
    """Whether greedy decoding gives the last word."""
    nll: Array
    """Negative log-likelihood of the last word, nats; float64."""

    @cached_property
    def accuracy(self) -> Interval:
        """Share of passages whose last word is predicted."""
        return proportion_interval(self.correct)

    @cached_property
    def ppl(self) -> Interval:
        """Perplexity a word."""
        return mean_interval(self.nll).exp()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "model": self.name,
            "passages": len(self.nll),
            "accuracy": self.accuracy.value,
            "accuracy_ci": self.accuracy.bounds(),
            "ppl": self.ppl.value,
            "ppl_ci": self.ppl.bounds(),
        }


@dataclass(frozen=True)
class PairedLambada:
    """Two models on the same passages."""

    a: str
    b: str
    accuracy: PairedTest
    """Accuracy of a less that of b; McNemar's exact test."""
    nll: PairedTest
    """Nats a word of a less those of b; sign-flip test."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "a": self.a,
            "b": self.b,
            "accuracy_diff": self.accuracy.diff.value,
            "accuracy_ci": self.accuracy.diff.bounds(),
            "accuracy_p": self.accuracy.p,
            "nll_diff": self.nll.diff.value,
            "nll_ci": self.nll.diff.bounds(),
            "nll_p": self.nll.p,
        }


def load_lambada(path: str | Path) -> tuple[str, ...]:
    """Read passages in OpenAI's format: a line is a JSON object with the passage in "text".

    Raises:
        DataError: the file is missing, holds no passage, or a line is not of that form.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would break at U+2028 within a text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"lambada: passages were to be read from {file}, found: {error}; name a JSON-lines file"
        ) from error
    texts = tuple(_passage(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    if not texts:
        raise DataError(f'lambada: {file} holds no passage; it should have lines such as {{"text": "…"}}')
    return texts


def split_last_word(text: str) -> tuple[str, str]:
    """Split a passage at its last space into the context and the target (which starts with that space).

    Raises:
        DataError: there is no space, or nothing on one side of it.
    """
    context, space, word = text.rpartition(" ")
    if not context.strip() or not word:
        raise DataError(f"lambada: a passage of two or more words is needed, found {text[-60:]!r}; drop it")
    return context, space + word


def lambada(
    model: Logits,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch: int = 16,
    progress: Progress | None = None,
) -> LambadaScores:
    """Predict the last word of each passage.

    Args:
        model: gives the logits.
        tokenizer: of the model.
        texts: whole passages.
        batch: passages in a forward pass.
        progress: called after each forward pass with ("score", passages done, all passages).

    Raises:
        DataError: no passages, or one of fewer than two words.
        CheckFailed: the model gave logits that are not finite.
    """
    if not texts:
        raise DataError("lambada: no passages were given; load them with load_lambada")
    requests = [encode_pair(tokenizer, *split_last_word(text)) for text in texts]
    scores = score_continuations(model, requests, batch=batch, progress=progress)
    faulty = next((index for index, score in enumerate(scores) if not math.isfinite(score.logprob)), None)
    if faulty is not None:
        raise CheckFailed(
            f"lambada: {model.name} was to give finite logits, found NaN or infinity in passage {faulty}; "
            "check the folder with `ssmquant verify`, or quantise with more tensors kept in float"
        )
    return LambadaScores(
        name=model.name,
        correct=np.array([score.greedy for score in scores]),
        nll=np.array([-score.logprob for score in scores]),
    )


def compare_lambada(a: LambadaScores, b: LambadaScores) -> PairedLambada:
    """Compare two models on the same passages.

    Raises:
        ValueError: the numbers of passages differ.
    """
    return PairedLambada(
        a.name, b.name, accuracy=mcnemar(a.correct, b.correct), nll=paired_test(a.nll, b.nll)
    )


def _passage(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f'lambada: {where} should be {{"text": "…"}}, found {line[:60]!r}') from error
    if not isinstance(text, str):
        raise DataError(f'lambada: {where}: "text" should be a string, found {text!r:.60}')
    return text
