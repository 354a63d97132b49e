"""Gradients as a statistic: against transformers' own model, in shards, in the cache, and without traces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_models import float_model, random_ids, reference, saved
from torch import Tensor
from torch.nn.functional import cross_entropy

from ssmquant.calibrate import calibrate, calibrate_cached
from ssmquant.errors import DataError
from ssmquant.statistics import Needs, Statistics
from ssmquant.tolerance import error_ratio

#: A site, and the name of its weight in transformers' model.
SITES = {
    "layers.0.in_proj.weight": "backbone.layers.0.mixer.in_proj.weight",
    "layers.2.out_proj.weight": "backbone.layers.2.mixer.out_proj.weight",
}
MODELS = ["mamba", "falcon_mamba", "mamba2-two-groups", "mamba2-untied-biased"]
NEEDS: Needs = dict.fromkeys(SITES, ("fisher",))
WINDOWS = random_ids(3, 70)  # longer than a chunk of the scan


def expected(name: str, parameter: str) -> Tensor:
    """Return the squared gradients of transformers' model, summed over the windows."""
    model = reference(saved(name))
    total = torch.zeros(())
    for window in WINDOWS:
        logits = model(window[None]).logits[0, :-1]
        (gradient,) = torch.autograd.grad(cross_entropy(logits, window[1:]), [model.get_parameter(parameter)])
        total = total + gradient.double() ** 2
    return total


def same(a: Statistics, b: Statistics) -> bool:
    x, y = a.to_tensors(), b.to_tensors()
    return x.keys() == y.keys() and all(torch.equal(tensor, y[name]) for name, tensor in x.items())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()  # as the whole of quantisation is
def test_gradients_are_those_of_transformers_model(name: str) -> None:
    statistics = calibrate(float_model(name).shell, WINDOWS, NEEDS)
    for site, parameter in SITES.items():
        with torch.enable_grad():
            exact = expected(name, parameter)
        # Both are float32: two orders of the sums through all layers and back.
        assert error_ratio(statistics.fisher(site), exact) < 1e-4


@pytest.mark.parametrize("name", ["mamba", "mamba2-two-groups"])
def test_shards_in_any_order_are_the_whole_bit_for_bit(name: str) -> None:
    shell = float_model(name).shell
    whole = calibrate(shell, WINDOWS, NEEDS)
    a, b, c = (calibrate(shell, WINDOWS[i : i + 1], NEEDS) for i in range(3))
    assert same(c.merge(a.merge(b)), whole)
    assert not same(a, b)


def test_gradients_and_activations_do_not_disturb_each_other() -> None:
    shell = float_model("mamba2-two-groups").shell
    both: Needs = NEEDS | {"layers.1.hidden": ("hessian",), "layers.1.state": ("absmax",)}
    gathered = calibrate(shell, WINDOWS, both)
    apart = calibrate(shell, WINDOWS, NEEDS).joined(
        calibrate(shell, WINDOWS, {site: both[site] for site in both if site not in NEEDS})
    )
    assert same(gathered, apart)


def test_the_model_is_left_as_it_was() -> None:
    model = float_model("mamba2-two-groups").shell.model
    parameters = dict(model.named_parameters())
    chosen = parameters["backbone.layers.0.mixer.A_log"]
    chosen.requires_grad_(False)
    try:
        before = {name: p.requires_grad for name, p in parameters.items()}
        assert set(before.values()) == {True, False}
        calibrate(float_model("mamba2-two-groups").shell, WINDOWS[:1], NEEDS)
        assert {name: p.requires_grad for name, p in parameters.items()} == before
        assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in parameters.values())
    finally:
        chosen.requires_grad_(True)


def test_the_cache_keeps_them_beside_other_statistics(tmp_path: Path) -> None:
    shell = float_model("mamba2-two-groups").shell
    calls: list[str] = []

    def gather(needs: Needs) -> Statistics:
        return calibrate_cached(shell, WINDOWS, needs, lambda what, *_: calls.append(what), cache=tmp_path)

    gather({"layers.0.x": ("absmax",)})
    first = gather(NEEDS)
    assert set(calls[3:]) == {"calibrate gradients"}
    again = gather(NEEDS | {"layers.0.x": ("absmax",)})
    assert len(calls) == 6
    assert torch.equal(first.fisher("layers.0.in_proj.weight"), again.fisher("layers.0.in_proj.weight"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_sequences_of_one_token_predict_nothing() -> None:
    with pytest.raises(DataError, match="2 tokens at least, not 1"):
        calibrate(float_model("mamba").shell, WINDOWS[:, :1], NEEDS)
