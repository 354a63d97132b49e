"""Sampling has transformers' definitions and draws what it says."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ssmquant.errors import InputError, SsmquantError
from ssmquant.runtime.sampling import Sampling, check_drawn, draw, process_logits, sample

VOCABULARY = 53


def _transformers(logits: torch.Tensor, history: list[list[int]], sampling: Sampling) -> torch.Tensor:
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k or logits.shape[-1]),
            TopPLogitsWarper(sampling.top_p),
        ]
    )
    rows = [
        processors(torch.LongTensor([ids]), row[None].clone())
        for ids, row in zip(history, logits, strict=True)
    ]
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("penalty", "temperature", "top_k", "top_p"),
    list(itertools.product((1.0, 1.3, 0.8), (1.0, 0.7), (0, 1, 9, 400), (1.0, 0.9, 0.3))),
)
def test_distribution_equals_transformers(
    penalty: float, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 4
    logits[1, 7:12] = logits[1].max()  # ties at the border of top-k
    history = [[1, 2, 2, 3], [7], list(range(40)), [52, 0]]
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    before = logits.clone()

    assert torch.equal(process_logits(logits, history, sampling), _transformers(logits, history, sampling))
    assert torch.equal(logits, before)


def test_greedy_applies_the_penalty_only() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, -1.0, -1.5]])
    history = [[1], [0]]
    generators = [torch.Generator(), torch.Generator()]
    assert sample(logits, history, Sampling(), generators).tolist() == [1, 0]
    assert sample(logits, history, Sampling(repetition_penalty=2.0), generators).tolist() == [2, 0]
    assert sample(
        logits, history, Sampling(repetition_penalty=2.0, top_k=1, top_p=0.1), generators
    ).tolist() == [2, 0]


def test_frequencies_follow_the_distribution() -> None:
    # A chi-square test; with 5 degrees of freedom 20.5 is exceeded once in 1,000 seeds, and the seed is
    # fixed.
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.04, 0.01])
    generator = torch.Generator().manual_seed(11)
    draws = 4000
    sampling = Sampling(temperature=1.0)
    counts = torch.zeros(7)
    for _ in range(draws):
        counts[sample(probabilities.log()[None], [[0]], sampling, [generator])] += 1
    assert counts[1] == 0
    expected = probabilities[probabilities > 0] * draws
    assert (((counts[probabilities > 0] - expected) ** 2) / expected).sum() < 20.5


def test_tokens_outside_top_k_are_never_drawn() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    allowed = set(logits.topk(3).indices[0].tolist())
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=50.0, top_k=3)
    drawn = {int(sample(logits, [[0]], sampling, [generator])) for _ in range(300)}
    assert drawn == allowed


def test_the_likeliest_token_is_always_kept() -> None:
    # 1 - top_p rounds to 1, which every cumulative probability reaches.
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    kept = process_logits(logits, [[0]], Sampling(temperature=1.0, top_p=1e-12))
    assert kept.isfinite().tolist() == [[False, True, False]]


def test_rows_draw_from_their_own_generator() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = sample(logits, [[0]] * 3, sampling, [torch.Generator().manual_seed(row) for row in range(3)])
    alone = [
        sample(logits[row : row + 1], [[0]], sampling, [torch.Generator().manual_seed(row)])
        for row in range(3)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_seed_decides() -> None:
    logits = torch.zeros(1, 10_000)
    draws = [
        sample(logits, [[0]], s, [s.generator()]).item()
        for seed in (0, 0, 1)
        if (s := Sampling(1.0, seed=seed))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_nan_logits_are_refused() -> None:
    with pytest.raises(SsmquantError, match="NaN logits"):
        sample(torch.tensor([[0.0, float("nan")]]), [[0]], Sampling(), [torch.Generator()])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_nan_is_marked_and_the_others_are_drawn(temperature: float) -> None:
    logits = torch.tensor([[0.0, float("nan"), 1.0], [-50.0, -50.0, 50.0]])
    generators = [torch.Generator(), torch.Generator()]
    drawn = draw(logits, [[0], [0]], Sampling(temperature), generators).tolist()
    assert drawn == [-1, 2]
    check_drawn([0, 2])
    with pytest.raises(SsmquantError, match="NaN logits"):
        check_drawn(drawn)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_out_of_range_values_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{field}={value} is out of range; use "):
        Sampling(**{field: value})  # type: ignore[arg-type]
