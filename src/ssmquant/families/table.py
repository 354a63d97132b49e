"""The table of families: which transformers model type is which mixer, and where its parts are.

A new family is a row: its model type, how its config gives the mixer's dimensions, and the attribute paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ssmquant.errors import ModelError, nearest
from ssmquant.modules.mamba1 import Mamba1Dims, mamba1_sites
from ssmquant.modules.mamba2 import Mamba2Dims, mamba2_sites
from ssmquant.sites import Site

__all__ = ["FAMILIES", "Dims", "Family", "family_of"]

Dims = Mamba1Dims | Mamba2Dims


@dataclass(frozen=True)
class Family:
    """How one transformers model type is taken apart.

    Attributes:
        name: transformers' ``model_type``.
        kind: mixer, ``mamba1`` or ``mamba2``.
        dims: the mixer's dimensions, from a transformers config.
        sites: the mixer's sites, from its dimensions.
        backbone, embedding, layers, block_norm, block_mixer, final_norm, head: attribute names.
    """

    name: str
    kind: Literal["mamba1", "mamba2"]
    dims: Callable[[Any], Dims]
    sites: Callable[[Any], tuple[Site, ...]]
    backbone: str = "backbone"
    embedding: str = "embeddings"
    layers: str = "layers"
    block_norm: str = "norm"
    block_mixer: str = "mixer"
    final_norm: str = "norm_f"
    head: str = "lm_head"


def _mamba1_dims(config: Any) -> Mamba1Dims:
    return Mamba1Dims(
        d_model=config.hidden_size,
        d_inner=config.intermediate_size,
        d_state=config.state_size,
        d_conv=config.conv_kernel,
        dt_rank=int(config.time_step_rank),
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
        dt_B_C_eps=getattr(config, "mixer_rms_eps", None),
    )


def _mamba2_dims(config: Any) -> Mamba2Dims:
    dt_min, dt_max = config.time_step_limit
    return Mamba2Dims(
        d_model=config.hidden_size,
        d_inner=int(config.expand * config.hidden_size),
        d_state=config.state_size,
        d_conv=config.conv_kernel,
        nheads=config.num_heads,
        headdim=config.head_dim,
        ngroups=config.n_groups,
        dt_min=float(dt_min),
        dt_max=float(dt_max),
        norm_eps=config.layer_norm_epsilon,
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("mamba", "mamba1", _mamba1_dims, mamba1_sites),
        Family("falcon_mamba", "mamba1", _mamba1_dims, mamba1_sites),
        Family("mamba2", "mamba2", _mamba2_dims, mamba2_sites),
    )
}


def family_of(model_type: str | None, where: str) -> Family:
    """Return the family of a model type.

    Args:
        model_type: transformers' ``model_type``.
        where: where it was read, for the error.

    Raises:
        ModelError: no family has this model type.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{where}: model type {model_type!r} is not supported; {nearest(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]
