"""Families: the only place that knows transformers' models: their classes, attribute paths and config names.

config = model_config(raw, folder)     # the options of a config.json
sites = model_sites(config)            # every quantisable tensor, from the config alone
shell = build(config, plan.schemes)    # our stages under transformers' names, on the meta device
transformers_model(shell)              # transformers' model around them; only this needs its modelling code
"""

from __future__ import annotations

from ssmquant.families.adoption import adopt, transformers_config, transformers_model
from ssmquant.families.config import Config, model_config
from ssmquant.families.shell import Block, Shell, build, model_sites
from ssmquant.families.table import FAMILIES, Family, family_of

__all__ = [
    "FAMILIES",
    "Block",
    "Config",
    "Family",
    "Shell",
    "adopt",
    "build",
    "family_of",
    "model_config",
    "model_sites",
    "transformers_config",
    "transformers_model",
]
