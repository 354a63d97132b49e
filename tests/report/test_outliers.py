"""The share of outlier columns: counted against the inputs themselves, and what it makes of the share of float work."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import float_model, quantised, random_ids
from torch import Tensor

import ssmquant
from ssmquant.footprint import bits_activation, float_share
from ssmquant.modules.weights import Linear
from ssmquant.report.outliers import outlier_shares

MODEL = "mamba2-two-groups"
DOMAINS = {"a": random_ids(6, 24, seed=1), "b": random_ids(2, 24, seed=2)}


def test_columns_are_counted_over_all_tokens_of_a_call() -> None:
    model = quantised(MODEL, "llm-int8")
    inputs: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _m, given, name=name: inputs.setdefault(name, []).append(given[0].data)
        )
        for name, layer in model.shell.weights()
        if isinstance(layer, Linear) and name.startswith("layers.")
    ]
    found = outlier_shares(model, DOMAINS)
    for hook in hooks:
        hook.remove()
    assert (
        found.keys()
        == inputs.keys()
        == {f"layers.{n}.{s}.weight" for n in range(3) for s in ("in_proj", "out_proj")}
    )
    for name, (first, second) in inputs.items():
        assert (len(first), len(second)) == (4, 2)  # documents in a call
        shares = [float((x.half().abs() >= 6).flatten(0, 1).any(0).double().mean()) for x in (first, second)]
        assert found[name] == pytest.approx(sum(shares) / 2)
    assert 0 < sum(found.values()) < len(found)


def test_the_model_is_left_as_it_was() -> None:
    model = quantised(MODEL, "llm-int8")
    before, logits = [weight.format for _, weight in model.shell.weights()], model.logits(DOMAINS["b"])
    outlier_shares(model, DOMAINS)
    assert [weight.format for _, weight in model.shell.weights()] == before
    assert torch.equal(model.logits(DOMAINS["b"]), logits)


def test_other_recipes_have_none() -> None:
    assert outlier_shares(quantised(MODEL, "w8a8-dynamic"), DOMAINS) == {}


def test_outlier_columns_are_work_on_floats() -> None:
    plan = ssmquant.plan(float_model(MODEL), "llm-int8")
    assert bits_activation(plan) == "mixed 8/16/32"  # 32: the head
    rows = {row.site.name: row.site.numel for row in plan.rows}
    shares = {"layers.0.in_proj.weight": 0.25, "layers.2.out_proj.weight": 1.0}
    head, layers = rows["lm_head.weight"], [n for name, n in rows.items() if name.endswith("_proj.weight")]
    done = head + rows["layers.0.in_proj.weight"] / 4 + rows["layers.2.out_proj.weight"]
    assert float_share(plan, shares) == pytest.approx(done / (head + sum(layers)))
    assert float_share(plan) == pytest.approx(head / (head + sum(layers)))
