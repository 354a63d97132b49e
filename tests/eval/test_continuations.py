from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssmquant.errors import DataError
from ssmquant.eval.continuations import Continuation, encode_pair, score_continuations

LIKELY = 2.0
VOCAB = 6


@pytest.fixture
def model(make_bigram: Callable[..., Any]) -> Any:
    """Token k is followed by k + 1 with logit 2, all else 0."""
    return make_bigram("next", LIKELY * torch.eye(VOCAB).roll(1, dims=1))


HIT = LIKELY - math.log(math.exp(LIKELY) + VOCAB - 1)
MISS = -math.log(math.exp(LIKELY) + VOCAB - 1)


def test_scores_are_those_worked_out_by_hand(model: Any) -> None:
    requests = [
        Continuation((0,), (1,)),
        Continuation((5, 3, 1), (2, 3, 4)),
        Continuation((0, 1), (2, 4, 5)),
        Continuation((2,), (4,)),
    ]
    scores = score_continuations(model, requests, batch=3)
    expected = [HIT, 3 * HIT, HIT + MISS + HIT, MISS]
    assert [score.logprob for score in scores] == pytest.approx(expected, rel=1e-6)
    assert [score.greedy for score in scores] == [True, True, False, False]


def test_padding_and_order_do_not_change_scores(model: Any) -> None:
    requests = [Continuation(tuple(range(n % 5 + 1)), (n % 6, (n + 1) % 6)) for n in range(12)]
    alone = [score_continuations(model, [request])[0] for request in requests]
    assert score_continuations(model, requests, batch=4) == alone
    assert score_continuations(model, requests[::-1], batch=5) == alone[::-1]


def test_choices_of_one_token_share_a_forward_pass(model: Any) -> None:
    calls: list[tuple[str, int, int]] = []
    requests = [Continuation((1, 2), (choice,)) for choice in range(VOCAB)] + [Continuation((4,), (5,))]
    scores = score_continuations(model, requests, progress=lambda *call: calls.append(call))
    assert model.batches == [(2, 2)]
    assert calls == [("score", 2, 2)]
    assert [score.greedy for score in scores] == [choice == 3 for choice in range(VOCAB)] + [True]
    assert sum(math.exp(score.logprob) for score in scores[:VOCAB]) == pytest.approx(1.0)


def test_longest_inputs_come_first(model: Any) -> None:
    score_continuations(model, [Continuation((0,) * n, (1,)) for n in (1, 4, 2, 3)], batch=2)
    assert model.batches == [(2, 4), (2, 2)]


@pytest.mark.parametrize("request_", [Continuation((), (1,)), Continuation((1,), ())])
def test_nothing_to_score_is_refused(model: Any, request_: Continuation) -> None:
    with pytest.raises(
        DataError, match=f"continuation 1 .* {len(request_.context)} and {len(request_.target)}"
    ):
        score_continuations(model, [Continuation((0,), (1,)), request_])


class _Merging:
    """A tokenizer that merges "ab" into one token, so that a split inside it moves the boundary."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text.replace("ab", "X")]


def test_target_is_what_the_whole_has_beyond_the_context() -> None:
    assert encode_pair(_Merging(), "cc", " ab") == ((99, 99), (32, 88))
    # The context ends with "a"; in the whole it is merged: as many tokens as the context are its.
    assert encode_pair(_Merging(), "ca", "bd") == ((99, 97), (100,))


def test_spaces_at_the_end_of_the_context_belong_to_the_target() -> None:
    assert encode_pair(_Merging(), "c  ", "d") == ((99,), (32, 32, 100))
