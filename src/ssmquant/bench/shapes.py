"""Named shapes: the published Mamba and Mamba-2 models as their own configurations describe them.

    config = shape_config("mamba2-2.7b")        # no weights are needed to measure speed

Sizes are those of the published checkpoints: state-spaces' Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060, its
vocabulary padded to a multiple of 16), and as 8b the pure Mamba-2 of arXiv 2406.07887, with eight groups, a vocabulary
of 256,000 and a head of its own.
"""

from __future__ import annotations

from typing import Any

from ssmquant.errors import InputError, nearest
from ssmquant.families import Config, model_config

__all__ = ["SHAPES", "default_recipe", "shape_config"]

_NEOX_VOCABULARY = 50277


def _mamba1(d_model: int, n_layer: int) -> dict[str, Any]:
    return {"d_model": d_model, "n_layer": n_layer, "vocab_size": _NEOX_VOCABULARY, "ssm_cfg": {}}


def _mamba2(d_model: int, n_layer: int) -> dict[str, Any]:
    shape = _mamba1(d_model, n_layer) | {"ssm_cfg": {"layer": "Mamba2"}}
    return shape | {"pad_vocab_size_multiple": 16}


SHAPES: dict[str, dict[str, Any]] = {
    "mamba-130m": _mamba1(768, 24),
    "mamba-370m": _mamba1(1024, 48),
    "mamba-790m": _mamba1(1536, 48),
    "mamba-1.4b": _mamba1(2048, 48),
    "mamba-2.8b": _mamba1(2560, 64),
    "mamba2-130m": _mamba2(768, 24),
    "mamba2-370m": _mamba2(1024, 48),
    "mamba2-780m": _mamba2(1536, 48),
    "mamba2-1.3b": _mamba2(2048, 48),
    "mamba2-2.7b": _mamba2(2560, 64),
    "mamba2-8b": {
        "d_model": 4096,
        "n_layer": 56,
        "vocab_size": 256000,
        "tie_embeddings": False,
        "ssm_cfg": {"layer": "Mamba2", "ngroups": 8},
    },
}
"""Configurations in the form of the original mamba_ssm code, by name."""

_DEFAULT_RECIPES = {"mamba": "quamba-w8a8", "mamba2": "quamba2-w8a8"}


def shape_config(name: str) -> Config:
    """Return the config of a named shape.

    Args:
        name: a key of `SHAPES`.

    Raises:
        InputError: there is no such shape.
    """
    if name not in SHAPES:
        raise InputError(f"no shape {name!r}; {nearest(name, SHAPES)}")
    return model_config(SHAPES[name], name)


def default_recipe(name: str) -> str:
    """Return the recipe that a named shape is measured in when none is asked for."""
    return _DEFAULT_RECIPES[name.partition("-")[0]]
