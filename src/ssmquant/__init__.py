"""ssmquant: post-training quantisation and pure-INT8 inference of Mamba-family language models.

    import ssmquant
    model = ssmquant.load("state-spaces/mamba2-130m")
    q = ssmquant.quantize(model, recipe="quamba2-w8a8")
    q.save("mamba2-130m-w8a8")
    ssmquant.load("mamba2-130m-w8a8").generate("Once upon a time", max_new_tokens=64)

Importing this package is light: torch and transformers are imported when they are first needed. Once transformers is
imported (before or after), its ``AutoModelForCausalLM.from_pretrained`` reads our folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

from ssmquant._version import __version__

if TYPE_CHECKING:
    from ssmquant.checkpoint import Verification as Verification
    from ssmquant.checkpoint import verify as verify
    from ssmquant.loading import load as load
    from ssmquant.loading import plan as plan
    from ssmquant.model import Model as Model
    from ssmquant.pipeline import quantize as quantize
    from ssmquant.planning import Plan as Plan
    from ssmquant.recipe import Recipe as Recipe
    from ssmquant.recipe import load_recipe as load_recipe
    from ssmquant.recipe import shipped_recipes as shipped_recipes

_PUBLIC = {
    "Model": "model",
    "Plan": "planning",
    "Recipe": "recipe",
    "Verification": "checkpoint",
    "load": "loading",
    "load_recipe": "recipe",
    "plan": "loading",
    "quantize": "pipeline",
    "shipped_recipes": "recipe",
    "verify": "checkpoint",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ssmquant' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ssmquant.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


@wrapt.when_imported("transformers.quantizers.auto")
def _register_with_transformers(_module: Any) -> None:
    importlib.import_module("ssmquant.integrations.transformers")
