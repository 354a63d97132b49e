"""Sums over the predicted tokens of each document: KL divergence, top-1 agreement, negative log-likelihood.

Pure tensor functions. The logits at positions 0 … L-2 predict the tokens 1 … L-1, so a document of L tokens
has L-1 predicted tokens. Sums and not means are returned, and what to average over is left to the caller.

The arithmetic is float64: the divergence of a good 8-bit model is near 1e-3 nats, a difference of terms near
10, and float32 would leave it three digits. Positions are taken a few at a time, which bounds the float64
copies and is also the faster way (the working set stays in the cache).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Comparison", "compare", "negative_log_likelihood"]

_CHUNK_ELEMENTS = 2**17  # logits held in float64 at a time, for each of two models: 1 MiB
_CHUNK_ELEMENTS_GPU = 2**22  # there a small piece costs as much as a large one


class Comparison(NamedTuple):
    """Sums over the predicted tokens of each document; float64 tensors [B] on the device of the reference."""

    kl: Tensor
    """KL(reference ‖ candidate) of the next-token distributions, nats."""
    top1: Tensor
    """Positions at which both models give the same token the highest logit."""
    nll_reference: Tensor
    """Negative log-likelihood of the text under the reference, nats."""
    nll: Tensor
    """Negative log-likelihood of the text under the candidate, nats."""


def compare(reference: Tensor, candidate: Tensor, ids: Tensor) -> Comparison:
    """Compare a candidate with the reference on the same tokens.

    Args:
        reference: logits [B, L, V], any floating dtype.
        candidate: logits [B, L, V], any floating dtype, any device.
        ids: the tokens, int64 [B, L] with L ≥ 2.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if reference.shape != candidate.shape:
        raise ValueError(
            f"compare: logits of one text expected, found shapes {tuple(reference.shape)} (reference) and "
            f"{tuple(candidate.shape)} (candidate)"
        )
    _check(reference, ids)
    kl, top1, nll_reference, nll = torch.zeros(4, len(ids), dtype=torch.float64, device=reference.device)
    for positions in _chunks(reference):
        predicted = ids[:, positions.start + 1 : positions.stop + 1].to(reference.device)
        logits = reference[:, positions]
        other = candidate[:, positions].to(reference.device)
        p, q = _exponentials(logits), _exponentials(other)
        top1 += (p.largest == q.largest).sum(-1)
        # sum of softmax(p) * (log softmax(p) - log softmax(q)); the logarithms of both sums leave it.
        cross = (p.values * (logits.double() - other.double())).sum(-1) / p.total
        # A divergence is never negative; rounding of equal distributions can make it -1e-16.
        kl += (cross - (p.log_total - q.log_total)).clamp_min(0).sum(-1)
        nll_reference += (p.log_total - _gather(logits, predicted)).sum(-1)
        nll += (q.log_total - _gather(other, predicted)).sum(-1)
    return Comparison(kl, top1, nll_reference, nll)


def negative_log_likelihood(logits: Tensor, ids: Tensor) -> Tensor:
    """Sum the negative log-likelihood of each document, in nats.

    Args:
        logits: [B, L, V], any floating dtype.
        ids: the tokens, int64 [B, L] with L ≥ 2.

    Returns:
        float64 [B] on the device of the logits.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(logits, ids)
    nll = torch.zeros(len(ids), dtype=torch.float64, device=logits.device)
    for positions in _chunks(logits):
        predicted = ids[:, positions.start + 1 : positions.stop + 1].to(logits.device)
        part = logits[:, positions]
        nll += (_exponentials(part).log_total - _gather(part, predicted)).sum(-1)
    return nll


class _Exponentials(NamedTuple):
    """What a softmax over the last dimension is made of, float64; exponentials relative to the largest logit."""

    values: Tensor
    """exp(logits - max) [..., V]"""
    total: Tensor
    """Their sum [...]."""
    log_total: Tensor
    """log of the sum of exp(logits) [...]."""
    largest: Tensor
    """Place of the largest logit, int64 [...]."""


def _exponentials(logits: Tensor) -> _Exponentials:
    top, largest = logits.max(-1)
    values = (logits.double() - top.double().unsqueeze(-1)).exp_()
    total = values.sum(-1)
    return _Exponentials(values, total, total.log() + top.double(), largest)


def _gather(logits: Tensor, predicted: Tensor) -> Tensor:
    """Return the logits of the predicted tokens, float64 [B, chunk]."""
    return logits.gather(-1, predicted.unsqueeze(-1)).squeeze(-1).double()


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Yield slices over the predicting positions 0 … L-2."""
    documents, length, vocab_size = logits.shape
    elements = _CHUNK_ELEMENTS if logits.device.type == "cpu" else _CHUNK_ELEMENTS_GPU
    step = max(1, elements // (documents * vocab_size))
    for start in range(0, length - 1, step):
        yield slice(start, min(start + step, length - 1))


def _check(logits: Tensor, ids: Tensor) -> None:
    if logits.shape[:-1] != ids.shape or ids.dim() != 2 or ids.shape[1] < 2:
        raise ValueError(
            f"logits [B, L, V] and tokens [B, L] with L ≥ 2 expected, found {tuple(logits.shape)} and "
            f"{tuple(ids.shape)}"
        )
