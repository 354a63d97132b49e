"""The table of families: which transformers model type is which mixer, and where its parts are.

A new family is a row: its model type, the options that its config must have, how they give the mixer's dimensions,
and the attribute paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ssmquant.errors import ModelError, nearest
from ssmquant.families.values import EPSILON, FLAG, LIMITS, RANK, WHOLE, WORD, Value
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
        options: what we read of its config, and what each may be set to.
        dims: the mixer's dimensions, from a config.
        sites: the mixer's sites, from its dimensions.
        backbone, embedding, layers, block_norm, block_mixer, final_norm, head: attribute names.
    """

    name: str
    kind: Literal["mamba1", "mamba2"]
    options: Mapping[str, Value]
    dims: Callable[[Any], Dims]
    sites: Callable[[Any], tuple[Site, ...]]
    backbone: str = "backbone"
    embedding: str = "embeddings"
    layers: str = "layers"
    block_norm: str = "norm"
    block_mixer: str = "mixer"
    final_norm: str = "norm_f"
    head: str = "lm_head"


_OPTIONS = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand"), WHOLE
    ),
    **dict.fromkeys(("use_bias", "use_conv_bias", "tie_word_embeddings"), FLAG),
    "layer_norm_epsilon": EPSILON,
    "hidden_act": WORD,
}
_MAMBA1_OPTIONS = {**_OPTIONS, "time_step_rank": RANK}
_FALCON_OPTIONS = {**_MAMBA1_OPTIONS, "mixer_rms_eps": EPSILON}
_MAMBA2_OPTIONS = {
    **_OPTIONS,
    **dict.fromkeys(("num_heads", "head_dim", "n_groups"), WHOLE),
    "time_step_limit": LIMITS,
}


def _mamba1_dims(config: Any) -> Mamba1Dims:
    rank = config.time_step_rank
    return Mamba1Dims(
        d_model=config.hidden_size,
        d_inner=config.expand * config.hidden_size,
        d_state=config.state_size,
        d_conv=config.conv_kernel,
        dt_rank=math.ceil(config.hidden_size / 16) if rank == "auto" else rank,
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
        dt_B_C_eps=getattr(config, "mixer_rms_eps", None),
    )


def _mamba2_dims(config: Any) -> Mamba2Dims:
    dt_min, dt_max = config.time_step_limit
    d_inner, nheads, headdim = config.expand * config.hidden_size, config.num_heads, config.head_dim
    if d_inner != nheads * headdim or nheads % config.n_groups:
        raise ModelError(
            f"config.json: expand * hidden_size = {d_inner} must be num_heads {nheads} * head_dim {headdim}, in "
            f"n_groups {config.n_groups} equal groups; mend it, or copy it again"
        )
    return Mamba2Dims(
        d_model=config.hidden_size,
        d_inner=d_inner,
        d_state=config.state_size,
        d_conv=config.conv_kernel,
        nheads=nheads,
        headdim=headdim,
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
        Family("mamba", "mamba1", _MAMBA1_OPTIONS, _mamba1_dims, mamba1_sites),
        Family("falcon_mamba", "mamba1", _FALCON_OPTIONS, _mamba1_dims, mamba1_sites),
        Family("mamba2", "mamba2", _MAMBA2_OPTIONS, _mamba2_dims, mamba2_sites),
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
