from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssmquant.errors import CheckFailed, DataError, InputError
from ssmquant.eval.evaluate import evaluate
from ssmquant.eval.metrics import compare

VOCAB = 40
DOMAIN_KEYS = {"tokens", "kl", "kl_ci", "top1", "ppl", "ppl_ref", "ppl_ratio", "ppl_ratio_ci"}
ENVIRONMENT = {"cpu": "of this test"}

MakeModel = Callable[..., Any]


def random_table(seed: int) -> Tensor:
    return torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))


def documents(n: int, length: int = 12, *, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def reference(make_bigram: MakeModel) -> Any:
    return make_bigram("float", random_table(0))


@pytest.fixture
def noisy(make_bigram: MakeModel, reference: Any) -> MakeModel:
    """Makes a candidate: the reference with noise on its logits."""
    return lambda name, noise, seed=1: make_bigram(name, reference.table + noise * random_table(seed))


def rendered(table: Table | None) -> str:
    assert table is not None
    text = io.StringIO()
    Console(width=200, file=text, color_system=None).print(table)
    return text.getvalue()


def test_json_of_one_model_has_the_keys_of_the_design(reference: Any, noisy: MakeModel) -> None:
    found = evaluate(reference, [noisy("w8a8", 0.1)], {"en": documents(6), "zh": documents(5, seed=1)})
    report = found.to_json(ENVIRONMENT)
    assert report.keys() == {"model", "against", "environment", "domains"}
    assert (report["model"], report["against"], report["environment"]) == ("w8a8", "float", ENVIRONMENT)
    assert list(report["domains"]) == ["en", "zh"]
    assert all(entry.keys() == DOMAIN_KEYS for entry in report["domains"].values())
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_json_of_several_models_has_the_keys_of_the_design(reference: Any, noisy: MakeModel) -> None:
    models = [noisy(name, noise) for name, noise in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    report = evaluate(reference, models, {"en": documents(6), "zh": documents(6)}).to_json(ENVIRONMENT)
    assert report.keys() == {"models", "environment", "paired"}
    assert [entry["model"] for entry in report["models"]] == ["a", "b", "c"]
    for entry in report["models"]:
        assert entry.keys() == {"model", "against", "domains"}
        assert all(domain.keys() == DOMAIN_KEYS for domain in entry["domains"].values())
    assert all(pair.keys() == {"a", "b", "domain", "kl_diff", "ci", "p"} for pair in report["paired"])
    assert [(pair["a"], pair["b"], pair["domain"]) for pair in report["paired"]] == [
        (a, b, domain) for a, b in ("ab", "ac", "bc") for domain in ("en", "zh")
    ]
    json.dumps(report, allow_nan=False)


def test_model_against_itself(reference: Any, make_bigram: MakeModel) -> None:
    same = make_bigram("same", reference.table.clone())
    entry = evaluate(reference, [same], {"en": documents(5)}).to_json({})["domains"]["en"]
    assert (entry["kl"], entry["kl_ci"], entry["top1"]) == (0, [0, 0], 1)
    assert (entry["ppl_ratio"], entry["ppl_ratio_ci"]) == (1, [1, 1])
    assert entry["ppl"] == entry["ppl_ref"] > 1
    assert entry["tokens"] == 5 * 11


def test_numbers_are_means_over_the_predicted_tokens(reference: Any, noisy: MakeModel) -> None:
    candidate, ids = noisy("w8a8", 0.3), documents(5)
    sums = compare(reference.table[ids], candidate.table[ids], ids)
    entry = evaluate(reference, [candidate], {"en": ids}, batch=2).to_json({})["domains"]["en"]
    assert entry["kl"] == pytest.approx(float(sums.kl.sum()) / 55)
    assert entry["kl_ci"][0] < entry["kl"] < entry["kl_ci"][1]
    assert entry["top1"] == pytest.approx(float(sums.top1.sum()) / 55)
    assert entry["ppl"] == pytest.approx(math.exp(float(sums.nll.sum()) / 55))
    assert entry["ppl_ref"] == pytest.approx(math.exp(float(sums.nll_reference.sum()) / 55))
    assert entry["ppl_ratio"] == pytest.approx(entry["ppl"] / entry["ppl_ref"])


def test_interval_of_the_ratio_is_paired(reference: Any, noisy: MakeModel) -> None:
    """Documents differ far more from each other than the models do on any of them."""
    scores = evaluate(reference, [noisy("w8a8", 0.01)], {"en": documents(20)}).models[0].domains["en"]
    ratio, ppl = scores.ppl_ratio, scores.ppl
    assert ratio is not None
    assert (ratio.high - ratio.low) < 0.1 * (ppl.high - ppl.low) / ppl.value


def test_batches_do_not_change_the_arrays(reference: Any, noisy: MakeModel) -> None:
    candidate, ids = noisy("w8a8", 0.3), documents(7)
    one, many = (evaluate(reference, [candidate], {"en": ids}, batch=batch) for batch in (1, 3))
    for a, b in zip(one.models, many.models, strict=True):
        left, right = a.domains["en"].divergence, b.domains["en"].divergence
        assert left is not None and right is not None
        np.testing.assert_allclose(left.kl, right.kl, rtol=1e-12)
        assert left.kl.shape == (7,)
        np.testing.assert_allclose(a.domains["en"].nll, b.domains["en"].nll, rtol=1e-12)


def test_reference_runs_once_a_batch_whatever_the_candidates(reference: Any, noisy: MakeModel) -> None:
    models = [noisy("a", 0.1), noisy("b", 0.2)]
    calls: list[tuple[str, int, int]] = []
    evaluate(
        reference,
        models,
        {"en": documents(5), "zh": documents(4)},
        batch=2,
        progress=lambda *call: calls.append(call),
    )
    assert [shape[0] for shape in reference.batches] == [2, 2, 1, 2, 2]
    assert models[0].batches == models[1].batches == reference.batches
    assert calls == [("evaluate", done, 15) for done in range(1, 16)]


def test_without_a_reference_there_is_perplexity_alone(make_bigram: MakeModel) -> None:
    uniform = make_bigram("uniform", torch.zeros(VOCAB, VOCAB))
    found = evaluate(None, [uniform], {"en": documents(4)})
    report = found.to_json({})
    entry = report["domains"]["en"]
    assert report["against"] is None
    assert entry["ppl"] == pytest.approx(VOCAB)
    assert entry["ppl_ci"] == pytest.approx([VOCAB, VOCAB])
    assert {key for key, value in entry.items() if value is None} == DOMAIN_KEYS - {"tokens", "ppl"}
    assert found.paired == ()
    assert found.paired_table() is None
    text = rendered(found.table())
    assert "40.00 [40.00, 40.00]" in text
    assert "KL" not in text


def test_one_document_has_no_interval(reference: Any, noisy: MakeModel) -> None:
    found = evaluate(reference, [noisy("a", 0.1), noisy("b", 0.4)], {"en": documents(1)})
    entry = found.models[0].to_json()["en"]
    assert entry["kl"] > 0
    assert entry["kl_ci"] is None and entry["ppl_ratio_ci"] is None
    assert "[one document]" in rendered(found.table())
    assert "no difference shown" in rendered(found.paired_table())


def test_closer_candidate_is_found_and_named(reference: Any, noisy: MakeModel) -> None:
    found = evaluate(reference, [noisy("coarse", 0.5), noisy("fine", 0.05)], {"en": documents(20)})
    (pair,) = found.paired
    assert pair.kl.diff.value > 0
    assert pair.kl.p < 0.001
    assert "fine closer" in rendered(found.paired_table())
    assert found.to_json({})["paired"][0]["kl_diff"] == pytest.approx(
        found.models[0].to_json()["en"]["kl"] - found.models[1].to_json()["en"]["kl"]
    )


def test_candidates_of_equal_noise_are_not_told_apart(reference: Any, noisy: MakeModel) -> None:
    found = evaluate(reference, [noisy("a", 0.2, seed=1), noisy("b", 0.2, seed=2)], {"en": documents(12, 4)})
    assert found.paired[0].kl.diff.value != 0
    text = rendered(found.paired_table())
    assert "no difference shown" in text
    assert "closer" not in text


def test_table_shows_values_with_intervals(reference: Any, noisy: MakeModel) -> None:
    found = evaluate(reference, [noisy("[w8a8]", 0.3)], {"en": documents(9)})
    entry = found.models[0].to_json()["en"]
    text = rendered(found.table())
    assert "[w8a8]" in text  # a name, not markup
    assert "against float" in text
    assert "KL [nats]" in text
    low, high = entry["kl_ci"]
    assert f"{entry['kl']:.2e} [{low:.2e}, {high:.2e}]" in text
    low, high = entry["ppl_ratio_ci"]
    assert f"{entry['ppl_ratio']:.4f} [{low:.4f}, {high:.4f}]" in text
    assert f"{entry['top1']:.2%} [" in text


def test_models_of_one_name_are_refused(reference: Any, noisy: MakeModel) -> None:
    with pytest.raises(InputError, match="two models are called 'a'"):
        evaluate(reference, [noisy("a", 0.1), noisy("a", 0.2)], {"en": documents(2)})


def test_no_model_is_refused(reference: Any) -> None:
    with pytest.raises(InputError, match="at least one model"):
        evaluate(reference, [], {"en": documents(2)})


def test_batch_of_none_is_refused(reference: Any, noisy: MakeModel) -> None:
    with pytest.raises(InputError, match="a batch of 0"):
        evaluate(reference, [noisy("a", 0.1)], {"en": documents(2)}, batch=0)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (5,)])
def test_text_that_predicts_nothing_is_refused(
    reference: Any, noisy: MakeModel, shape: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match="domain 'zh'"):
        domains = {"en": documents(2), "zh": torch.zeros(shape, dtype=torch.long)}
        evaluate(reference, [noisy("a", 0.1)], domains)


def test_no_text_is_refused(reference: Any, noisy: MakeModel) -> None:
    with pytest.raises(DataError, match="no domain"):
        evaluate(reference, [noisy("a", 0.1)], {})


def test_other_vocabulary_is_refused(reference: Any, make_bigram: MakeModel) -> None:
    other = make_bigram("other", torch.zeros(VOCAB, VOCAB + 8))
    with pytest.raises(InputError, match=r"other was to be compared with a reference of 40 .* has 48"):
        evaluate(reference, [other], {"en": documents(2)})


def test_model_that_breaks_down_is_named(reference: Any, noisy: MakeModel, make_bigram: MakeModel) -> None:
    broken_table = reference.table.clone()
    broken_table[7] = math.nan
    broken = make_bigram("broken", broken_table)
    ids = documents(4) % 7
    ids[2, 3] = 7
    with pytest.raises(CheckFailed, match=r"broken was .* 'en', found NaN .* 1 of 4 documents \(first: 2\)"):
        evaluate(reference, [noisy("sound", 0.1), broken], {"en": ids})
    with pytest.raises(CheckFailed, match="broken was"):
        evaluate(broken, [noisy("sound", 0.1)], {"en": ids})
    with pytest.raises(CheckFailed, match="broken was"):
        evaluate(None, [broken], {"en": ids})
