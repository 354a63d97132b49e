"""Named shapes against the published sizes of the models."""

from __future__ import annotations

import pytest

from ssmquant.bench.shapes import SHAPES, default_recipe, shape_config
from ssmquant.errors import InputError
from ssmquant.families import build
from ssmquant.recipe import load_recipe
from ssmquant.resolution import resolve

# Parameters of the checkpoints on the Hub (state-spaces, nvidia), with the padded vocabulary.
PARAMETERS = {
    "mamba-130m": 129_135_360,
    "mamba-370m": 371_516_416,
    "mamba-790m": 793_204_224,
    "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600,
    "mamba2-130m": 128_989_632,
    "mamba2-370m": 368_346_624,
    "mamba2-780m": 780_161_280,
    "mamba2-1.3b": 1_343_757_312,
    "mamba2-2.7b": 2_702_599_680,
    "mamba2-8b": 8_236_999_680,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_the_published_model(name: str) -> None:
    config = shape_config(name)
    shell = build(config, tied=config.tie_word_embeddings)
    assert sum(parameter.numel() for parameter in shell.model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_the_default_recipe_fits(name: str) -> None:
    plan = resolve(load_recipe(default_recipe(name)), shape_config(name), tied=name != "mamba2-8b")
    assert plan.recipe == default_recipe(name)


def test_an_unknown_shape_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no shape 'mamba2-1\.4b'; did you mean 'mamba-1\.4b'"):
        shape_config("mamba2-1.4b")
