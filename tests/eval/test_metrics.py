from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmquant.eval import metrics
from ssmquant.eval.metrics import compare, negative_log_likelihood

IDS = torch.tensor([[0, 1, 2]])
P = torch.tensor([0.5, 0.25, 0.25]).log()
Q = torch.tensor([0.25, 0.5, 0.25]).log()
GARBAGE = torch.tensor([9.0, -9.0, 4.0])  # at the last position, which predicts nothing


def logits(*positions: Tensor) -> Tensor:
    return torch.stack(positions).unsqueeze(0)


def random_logits(seed: int, *, scale: float = 3.0) -> Tensor:
    return torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(seed)) * scale


def random_ids() -> Tensor:
    return torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))


def test_sums_are_those_worked_out_by_hand() -> None:
    found = compare(logits(P, Q, GARBAGE), logits(Q, Q, -GARBAGE), IDS)
    # Position 0: ½ ln 2 + ¼ ln ½ + 0 = ¼ ln 2; position 1: equal.
    assert found.kl.tolist() == pytest.approx([math.log(2) / 4], rel=1e-6)
    assert found.top1.tolist() == [1]
    # Token 1 under P, token 2 under Q; under the candidate both under Q.
    assert found.nll_reference.tolist() == pytest.approx([math.log(4) + math.log(4)], rel=1e-6)
    assert found.nll.tolist() == pytest.approx([math.log(2) + math.log(4)], rel=1e-6)


def test_divergence_is_from_the_reference() -> None:
    p = torch.tensor([0.9, 0.05, 0.05]).log()
    q = torch.tensor([0.2, 0.4, 0.4]).log()
    expected = 0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.05 / 0.4)
    assert compare(logits(p, p), logits(q, q), IDS[:, :2]).kl.item() == pytest.approx(expected, rel=1e-6)


def test_equal_models_have_no_divergence_at_all() -> None:
    found = compare(random_logits(1), random_logits(1), random_ids())
    assert found.kl.tolist() == [0, 0, 0]
    assert found.top1.tolist() == [6, 6, 6]
    assert torch.equal(found.nll, found.nll_reference)


def test_documents_are_kept_apart() -> None:
    reference, candidate, ids = random_logits(1), random_logits(2), random_ids()
    together = torch.stack(compare(reference, candidate, ids))
    alone = [
        torch.stack(compare(reference[i : i + 1], candidate[i : i + 1], ids[i : i + 1])) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("elements", [1, 3 * 50 * 2, 3 * 50 * 4, 2**30])
def test_chunks_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    reference, candidate, ids = random_logits(1), random_logits(2), random_ids()
    p, q = (x[:, :-1].double().log_softmax(-1) for x in (reference, candidate))
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", elements)
    found = compare(reference, candidate, ids)
    torch.testing.assert_close(found.kl, (p.exp() * (p - q)).sum((1, 2)), rtol=1e-12, atol=0)
    nll = torch.nn.functional.nll_loss(q.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(found.nll, nll.unflatten(0, (3, 6)).sum(1), rtol=1e-12, atol=0)
    assert torch.equal(negative_log_likelihood(candidate, ids), found.nll)


def test_small_divergence_keeps_its_digits() -> None:
    """A divergence of 1e-8 nats under large common logits: float32 arithmetic would leave no digit."""
    step = 2.0**-12
    change = torch.where(torch.arange(64) % 2 == 0, step, -step)
    reference = torch.full((1, 2, 64), 100.0)
    found = compare(reference, reference + change, torch.zeros(1, 2, dtype=torch.long)).kl.item()
    assert found == pytest.approx(math.log(math.cosh(step)), rel=1e-6)


def test_rounding_makes_no_divergence_negative() -> None:
    """Logits 1e-9 apart diverge by 1e-18, less than a float64 sum of 50 terms can tell."""
    reference = random_logits(1).double().flatten(0, 1).unsqueeze(1).expand(-1, 2, -1)  # [21, 2, 50]
    candidate = reference + 1e-9 * random_logits(2).double().flatten(0, 1).unsqueeze(1)
    p, q = reference[:, 0].log_softmax(-1), candidate[:, 0].log_softmax(-1)
    assert ((p.exp() * (p - q)).sum(-1) < 0).any()  # else this test shows nothing
    found = compare(reference, candidate, torch.zeros(21, 2, dtype=torch.long))
    assert (found.kl >= 0).all()
    assert found.kl.max() < 1e-14


def test_half_precision_logits_are_taken_as_they_are() -> None:
    reference, candidate, ids = random_logits(1).bfloat16(), random_logits(2).half(), random_ids()
    expected = compare(reference.double(), candidate.double(), ids)
    torch.testing.assert_close(compare(reference, candidate, ids).kl, expected.kl, rtol=1e-12, atol=0)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    ids = random_ids()
    with pytest.raises(ValueError, match=r"\(3, 7, 50\) \(reference\) and \(3, 7, 40\)"):
        compare(random_logits(1), random_logits(1)[..., :40], ids)
    with pytest.raises(ValueError, match=r"found \(3, 7, 50\) and \(3, 6\)"):
        compare(random_logits(1), random_logits(1), ids[:, :6])
    with pytest.raises(ValueError, match="L ≥ 2"):
        negative_log_likelihood(random_logits(1)[:, :1], ids[:, :1])
