"""The options of a config.json: read as they are, filled in by transformers where one is missing, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.tiny_models import CONFIGS, saved
from transformers import AutoConfig

from ssmquant.errors import ModelError
from ssmquant.families import FAMILIES, Config, family_of, model_config, transformers_config
from ssmquant.files import read_config

ONE_OF_EACH = ["mamba", "falcon_mamba-untied-biased", "mamba2-two-groups"]


def raw(name: str) -> dict[str, Any]:
    return read_config(saved(name))


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers fill in nothing."""
    monkeypatch.setattr(AutoConfig, "for_model", None)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("no_transformers")
def test_a_config_that_says_all_needs_no_transformers(name: str) -> None:
    config, theirs = model_config(raw(name), "here"), CONFIGS[name]
    assert family_of(config.model_type, "").dims(config) == family_of(theirs.model_type, "").dims(theirs)
    for option in FAMILIES[config.model_type].options:
        found, expected = getattr(config, option), getattr(theirs, option)
        assert found == (list(expected) if isinstance(expected, tuple) else expected), option


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_a_config_leaves_out_is_transformers_default(name: str) -> None:
    short = {"model_type": raw(name)["model_type"], "hidden_size": 4096, "tie_word_embeddings": True}
    config, theirs = model_config(short, "here"), AutoConfig.for_model(**short)
    for option in FAMILIES[config.model_type].options:
        found, expected = getattr(config, option), getattr(theirs, option)
        assert found == (list(expected) if isinstance(expected, tuple) else expected), option


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_makes_its_config_of_ours(name: str) -> None:
    theirs = transformers_config(model_config(raw(name), "here"))
    assert type(theirs) is type(CONFIGS[name])
    for option in FAMILIES[theirs.model_type].options:
        found, expected = getattr(theirs, option), getattr(CONFIGS[name], option)
        assert (list(found) if isinstance(expected, tuple) else found) == (
            list(expected) if isinstance(expected, tuple) else expected
        ), option


def test_other_options_are_carried_along_and_a_plan_is_not() -> None:
    content = raw("mamba") | {"chunk": 7, "quantization_config": {"quant_method": "ssmquant"}}
    config = model_config(content, "here").to_dict()
    assert config["chunk"] == 7
    assert config["bos_token_id"] is None
    assert "quantization_config" not in config


def test_the_rank_of_dt_is_that_of_transformers_where_it_is_left_to_it() -> None:
    config = model_config(raw("mamba") | {"time_step_rank": "auto"}, "here")
    assert family_of("mamba", "").dims(config).dt_rank == math.ceil(48 / 16)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "48"}, "hidden_size must be a whole number above 0, found '48'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number above 0, found 0"),
        ({"use_bias": 1}, "use_bias must be true or false, found 1"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon must be a number of at least 0, found None"),
        ({"layer_norm_epsilon": math.inf}, "layer_norm_epsilon must be a number of at least 0, found inf"),
        ({"time_step_limit": [0.1]}, r"time_step_limit must be two numbers, found \[0\.1\]"),
        ({"time_step_limit": [0.1, math.nan]}, "time_step_limit must be two numbers"),
        ({"hidden_act": None}, "hidden_act must be a word, found None"),
        ({"n_groups": True, "head_dim": 0.5}, r"head_dim must be .*n_groups must be a whole number"),
    ],
)
def test_an_option_of_the_wrong_kind_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s)here/config\.json: not a mamba2 config.*{message}"):
        model_config(raw("mamba2") | change, "here")


def test_what_transformers_does_not_take_is_told() -> None:
    with pytest.raises(
        ModelError, match=r"here/config\.json: transformers cannot read it as a 'mamba2' config"
    ):
        model_config({"model_type": "mamba2", "hidden_size": "wide"}, "here")


@pytest.mark.parametrize("change", [{"num_heads": 11}, {"head_dim": 16}, {"n_groups": 5}, {"expand": 3}])
def test_sizes_that_do_not_fit_one_another_are_refused(change: dict[str, Any]) -> None:
    config = Config(**model_config(raw("mamba2"), "here").to_dict() | change)
    with pytest.raises(ModelError, match=r"must be num_heads .* equal groups"):
        family_of("mamba2", "").dims(config)
