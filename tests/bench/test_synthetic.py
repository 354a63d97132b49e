"""Random models in quantised form: whole, finite, lively, the same each time; for every shipped recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import CONFIGS, fitting, random_ids
from torch import Tensor
from transformers import PreTrainedModel

from ssmquant.bench.synthetic import random_model, random_shape
from ssmquant.errors import InputError, RecipeError
from ssmquant.model import Model
from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.recipe import load_recipe
from ssmquant.resolution import resolve

# What no filled tensor holds.
SENTINELS: dict[torch.dtype, float] = {
    torch.float32: float("nan"),
    torch.float16: float("nan"),
    torch.int8: -128,
    torch.uint8: 0x88,  # twice the code -8
    torch.int16: -1,
    torch.int32: -1,
}


def made(name: str, recipe: str) -> Model:
    config = CONFIGS[name]
    plan = resolve(load_recipe(recipe), config, tied=bool(config.tie_word_embeddings))
    return random_model("tiny", config, plan)


def untouched(tensor: Tensor) -> Tensor:
    sentinel = SENTINELS[tensor.dtype]
    return tensor.isnan() if tensor.dtype.is_floating_point else tensor == sentinel


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a model is given holds what no filled tensor does."""
    original = PreTrainedModel.to_empty

    def to_empty(self: PreTrainedModel, *args: Any, **options: Any) -> Any:
        model = original(self, *args, **options)
        for tensor in model.state_dict().values():
            tensor.fill_(SENTINELS[tensor.dtype])
        return model

    monkeypatch.setattr(PreTrainedModel, "to_empty", to_empty)


@pytest.mark.usefixtures("marked")
@pytest.mark.parametrize(("recipe", "name"), fitting())
def test_every_tensor_is_filled_and_logits_are_finite_and_differ(recipe: str, name: str) -> None:
    model = made(name, recipe)
    lookup = {"packed"} if recipe.startswith("squeezellm") else set()  # there every byte means something
    for path, tensor in model.module.state_dict().items():
        if path.rpartition(".")[2] not in lookup:
            assert not untouched(tensor).any(), path
    logits = model.logits(random_ids(2, 40))
    assert logits.isfinite().all()
    assert 0.05 < float(logits.std()) < 50  # neither saturated nor dead
    assert float((logits[:, -1] - logits[:, -2]).abs().max()) > 0.05


@pytest.mark.parametrize("name", ["mamba2-untied-biased", "falcon_mamba-untied-biased"])
def test_untied_heads_and_biases_are_filled_too(name: str, marked: None) -> None:
    model = made(name, "w8a8-naive")
    assert not any(untouched(tensor).any() for tensor in model.module.state_dict().values())
    assert model.logits(random_ids(1, 5)).isfinite().all()


def test_a_model_is_the_same_each_time() -> None:
    first, second = (made("mamba2-wide", "quamba2-w4a8").module.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_groups_are_as_calibration_makes_them() -> None:
    """A scale of x for each cluster of heads and of channels in an SSD group; each is used."""
    model = made("mamba2-wide", "quamba2-w8a8")  # 2 groups of 4 heads of 64: 4 x 4 clusters each
    group = model.shell.blocks[0].mixer.act["x"].group
    assert isinstance(group, Tensor)
    assert torch.equal(group.unique(), torch.arange(32))
    heads = group.view(8, 64).long()
    assert torch.equal(heads[1] - heads[0], torch.full((64,), 4))
    assert torch.equal(heads[0], torch.arange(4).repeat_interleave(16))
    states = model.shell.blocks[0].mixer.act["B"].group
    assert isinstance(states, Tensor)
    assert torch.equal(states.view(2, -1), torch.tensor([[0], [1]]).expand(2, 16))


def test_packed_codes_are_uniform_in_both_halves_of_a_byte() -> None:
    codes = unpack_int4(made("mamba2-wide", "quamba2-w4a8").shell.blocks[0].mixer.in_proj.stored["packed"])
    for half in (codes[:, 0::2], codes[:, 1::2]):
        counts = torch.bincount(half.flatten().long() + 8, minlength=16)
        assert counts[0] == 0
        assert bool((counts[1:] > 0.9 * half.numel() / 15).all())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="quamba-w8a8"):
        random_shape("mamba-130m", "quamba2-w8a8")
    with pytest.raises(InputError, match="no shape"):
        random_shape("mamba3-130m", "quamba2-w8a8")
