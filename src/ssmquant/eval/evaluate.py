"""Run models over domains of text: one pass, the reference once a batch and shared by all candidates.

    evaluation = evaluate(float_model, [w8a8, w4a8], {"en": ids_en, "zh": ids_zh})
    evaluation.to_json(environment())

Leaves out: where the text comes from (`ssmquant.data`) and what the numbers mean (`metrics`, `statistics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ssmquant.errors import CheckFailed, DataError, InputError
from ssmquant.eval.metrics import compare, negative_log_likelihood
from ssmquant.eval.protocols import Logits, Progress
from ssmquant.eval.results import Divergence, DomainScores, Evaluation, ModelScores
from ssmquant.eval.statistics import Array

__all__ = ["evaluate"]


def evaluate(
    reference: Logits | None,
    candidates: Sequence[Logits],
    domains: Mapping[str, Tensor],
    *,
    batch: int = 4,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate candidates on the same tokens, against a reference where there is one.

    Args:
        reference: the float model, or None to measure perplexity alone.
        candidates: the models to evaluate, each with its own name.
        domains: name -> tokens, int64 [documents, L]; every document of a domain has the same length L ≥ 2.
        batch: documents in a forward pass. Two float32 tensors [batch, L, V] are held at a time.
        progress: called after each forward pass with ("evaluate", passes done, all passes).

    Raises:
        DataError: a domain is empty or holds documents of fewer than two tokens.
        InputError: no candidates, two with one name, or a candidate whose vocabulary is not the reference's.
        CheckFailed: a model gave logits that are not finite.
    """
    _check(candidates, domains, batch)
    passes = sum(-(-len(ids) // batch) for ids in domains.values()) * (
        len(candidates) + (reference is not None)
    )
    done = 0

    def run(model: Logits, ids: Tensor) -> Tensor:
        nonlocal done
        with torch.no_grad():
            logits = model.logits(ids)
        done += 1
        if progress is not None:
            progress("evaluate", done, passes)
        return logits

    scores: list[dict[str, DomainScores]] = [{} for _ in candidates]
    for domain, ids in domains.items():
        sums: list[list[Tensor]] = [[] for _ in candidates]  # a tensor [measures, documents] a batch
        for rows in torch.split(ids, batch):
            expected = None if reference is None else run(reference, rows)
            for model, collected in zip(candidates, sums, strict=True):
                collected.append(_measure(expected, run(model, rows), rows, model.name))
        for model, collected, found in zip(candidates, sums, scores, strict=True):
            means = torch.cat(collected, dim=1).cpu().numpy() / (ids.shape[1] - 1)
            _check_finite(means, model.name, domain, reference)
            found[domain] = _domain_scores(means, ids)
    return Evaluation(
        against=None if reference is None else reference.name,
        models=tuple(ModelScores(m.name, found) for m, found in zip(candidates, scores, strict=True)),
    )


def _measure(expected: Tensor | None, logits: Tensor, ids: Tensor, name: str) -> Tensor:
    """Return the sums of each document: [4, B], the fields of `Comparison`; [1, B] without a reference."""
    if expected is None:
        return negative_log_likelihood(logits, ids).unsqueeze(0)
    if expected.shape[-1] != logits.shape[-1]:
        raise InputError(
            f"eval: {name} was to be compared with a reference of {expected.shape[-1]:,} vocabulary entries "
            f"but has {logits.shape[-1]:,}; compare models that share a tokenizer"
        )
    return torch.stack(compare(expected, logits, ids))


def _domain_scores(means: Array, ids: Tensor) -> DomainScores:
    *divergence, nll = means
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    return DomainScores(tokens=tokens, nll=nll, divergence=Divergence(*divergence) if divergence else None)


def _check(candidates: Sequence[Logits], domains: Mapping[str, Tensor], batch: int) -> None:
    names = [model.name for model in candidates]
    if not names:
        raise InputError("eval: at least one model is needed, none was given")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"eval: two models are called {repeated[0]!r}; give each a name of its own")
    if batch < 1:
        raise InputError(f"eval: a batch of {batch} documents was asked for; use 1 or more")
    if not domains:
        raise DataError("eval: no domain of text was given; name one, or use the built-in texts")
    for domain, ids in domains.items():
        if ids.dim() != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise DataError(
                f"eval: domain {domain!r} should hold documents of two or more tokens, found tokens of shape "
                f"{tuple(ids.shape)}; use more or longer text"
            )


def _check_finite(means: Array, name: str, domain: str, reference: Logits | None) -> None:
    faulty = np.flatnonzero(~np.isfinite(means).all(axis=0))
    if not len(faulty):
        return
    # Third row of a comparison: the reference alone.
    if reference is not None and not np.isfinite(means[2]).all():
        name = reference.name
    raise CheckFailed(
        f"eval: {name} was to give finite logits on domain {domain!r}, found NaN or infinity in "
        f"{len(faulty)} of {means.shape[1]} documents (first: {faulty[0]}); check the folder with "
        "`ssmquant verify`, or quantise with more tensors kept in float"
    )
