from __future__ import annotations

from math import prod

import pytest
from tests.tiny_models import CONFIGS, MAMBA2, float_model

from ssmquant.families import FAMILIES, build, family_of, model_sites
from ssmquant.modules.mamba2 import Mamba2Dims
from ssmquant.sites import SiteKind

NAMES = ["mamba", "falcon_mamba-untied-biased", "mamba2-two-groups", "mamba2-untied-biased"]


@pytest.mark.parametrize("name", NAMES)
def test_sites_from_the_config_are_the_places_in_the_model(name: str) -> None:
    shell = float_model(name).shell
    sites = {site.name: site for site in model_sites(CONFIGS[name])}
    weights = {name: weight.shape for name, weight in shell.weights()}
    activations = dict(shell.activations())
    assert sites.keys() == weights.keys() | activations.keys() | {"lm_head.weight"}
    for site in sites.values():
        if site.kind is SiteKind.WEIGHT and site.name in weights:
            assert tuple(site.dims.values()) == weights[site.name]
        elif site.kind is not SiteKind.WEIGHT:
            assert activations[site.name].dims == site.dims
            assert site.numel == prod(site.dims.values())
    assert ("lm_head.weight" in weights) == (not shell.tied)


@pytest.mark.parametrize("name", NAMES)
def test_every_consumer_of_a_site_is_a_stage(name: str) -> None:
    stages = {"in_proj", "x_proj", "dt_proj", "out_proj", "conv1d", "scan", "gate", "gated_norm"}
    for site in model_sites(CONFIGS[name]):
        assert site.consumers
        assert set(site.consumers) <= stages | {"embedding", "lm_head"}, site


def test_building_a_shell_leaves_the_config_as_it_is() -> None:
    build(CONFIGS["mamba2"], tied=True)
    assert CONFIGS["mamba2"].tie_word_embeddings


def test_dimensions_are_those_of_the_config() -> None:
    dims = family_of("mamba2", "here").dims(CONFIGS["mamba2-two-groups"])
    assert dims == Mamba2Dims(
        d_model=48,
        d_inner=96,
        d_state=16,
        d_conv=4,
        nheads=12,
        headdim=8,
        ngroups=2,
        dt_min=0.05,
        dt_max=0.6,
        norm_eps=1e-5,
        bias=False,
        conv_bias=True,
    )
    assert isinstance(dims, Mamba2Dims)
    assert dims.conv_dim == 96 + 2 * 2 * 16
    assert dims.d_in_proj == 2 * 96 + 2 * 2 * 16 + 12


def test_every_family_has_a_tiny_model() -> None:
    assert {CONFIGS[name].model_type for name in CONFIGS} == set(FAMILIES)
    assert {FAMILIES[CONFIGS[name].model_type].kind for name in MAMBA2} == {"mamba2"}
