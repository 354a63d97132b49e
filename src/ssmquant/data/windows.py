"""Windows of tokens, cut out of documents for calibration and evaluation.

Documents are taken in file order and nothing is drawn at random: the same spec gives the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmquant.data.documents import parse_spec
from ssmquant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["calibration_windows", "windows"]


def windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, seqlen: int, samples: int | None, source: str
) -> Tensor:
    """Cut the first ``seqlen`` tokens out of each text that is long enough, in order.

    A single text is running text (a whole ``.txt`` file, say): it is cut into consecutive windows that do not overlap.

    Args:
        texts: the documents of one domain.
        tokenizer: a transformers tokenizer; its special tokens are added as it does by default.
        seqlen: tokens in a window.
        samples: windows wanted; None takes all there are.
        source: what to call the text in an error.

    Returns:
        Tokens, int64 [samples, seqlen].

    Raises:
        DataError: fewer than ``samples`` windows (for None: not one) were found.
    """
    lists = (_tokens(text, tokenizer) for text in texts)
    return _stack(lists, running=len(texts) == 1, seqlen=seqlen, samples=samples, source=source)


def calibration_windows(
    spec: str, tokenizer: PreTrainedTokenizerBase, *, samples: int, seqlen: int
) -> Tensor:
    """Cut calibration windows out of the domains of a spec, each in proportion to its weight.

    Samples are shared out by largest remainder; domains without weights get equal shares. Windows are cut as in
    `windows`, but texts that are too short are joined with the end-of-text token until they fill a window, so
    that none is passed over.

    Args:
        spec: see `ssmquant.data.documents`.
        tokenizer: a transformers tokenizer; it must have an end-of-text token where short texts are to be joined.
        samples: windows in all.
        seqlen: tokens in a window.

    Returns:
        Tokens, int64 [samples, seqlen], domain after domain.

    Raises:
        DataError: the spec or a file cannot be used, or a domain has too little text.
    """
    _check_positive("samples", samples)
    sources = parse_spec(spec, "calib")
    shares = _shares(samples, [1.0 if source.weight is None else source.weight for source in sources])
    parts = []
    for source, share in zip(sources, shares, strict=True):
        texts = source.read().texts
        if share:
            lists = _joined((_tokens(text, tokenizer) for text in texts), tokenizer.eos_token_id, seqlen)
            running = len(texts) == 1
            parts.append(_stack(lists, running=running, seqlen=seqlen, samples=share, source=source.domain))
    return torch.cat(parts)


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: it would warn of texts longer than model_max_length, but they are about to be cut.
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _joined(lists: Iterable[list[int]], end: int | None, seqlen: int) -> Iterator[list[int]]:
    """Join token lists with the end-of-text token until each has ``seqlen`` tokens; the last may have fewer."""
    joined: list[int] = []
    for ids in lists:
        joined += ids
        if len(joined) < seqlen:
            if end is None:
                raise DataError(
                    f"calibration text: one of {len(ids)} tokens is too short for a window of {seqlen}, and the "
                    "tokenizer has no end-of-text token to join it to the next with; give longer texts"
                )
            joined.append(end)
        if len(joined) >= seqlen:
            yield joined
            joined = []
    if joined:
        yield joined


def _stack(
    lists: Iterable[list[int]], *, running: bool, seqlen: int, samples: int | None, source: str
) -> Tensor:
    """Cut windows out of token lists until there are ``samples``: one of each, or (``running``) all that fit."""
    _check_positive("seqlen", seqlen)
    if samples is not None:
        _check_positive("samples", samples)
    rows: list[list[int]] = []
    longest = 0
    for ids in lists:
        longest = max(longest, len(ids))
        fitting = len(ids) // seqlen
        rows += [ids[i * seqlen : (i + 1) * seqlen] for i in range(fitting if running else min(fitting, 1))]
        if samples is not None and len(rows) >= samples:
            break
    if len(rows) < (samples or 1):
        raise DataError(
            f"{source}: asked for {samples or 'any'} windows of {seqlen} tokens, found {len(rows)} "
            f"(the longest text has {longest}); ask for fewer samples or a shorter seqlen, or give more text"
        )
    return torch.tensor(rows[:samples], dtype=torch.int64)


def _shares(samples: int, weights: Sequence[float]) -> list[int]:
    """Share ``samples`` out by weight: whole parts first, then one more to each of the largest remainders."""
    exact = [samples * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    shares = [math.floor(part) for part in exact]
    # The sort is stable and fractions are exact: of equal remainders the earlier comes first, on every machine.
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: samples - sum(shares)]:
        shares[i] += 1
    return shares


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise DataError(f"{name}={value}: must be 1 or more")
