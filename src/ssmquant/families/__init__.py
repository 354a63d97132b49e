"""Families: the only place that knows transformers' models: their classes, attribute paths and config names.

shell = build(config, plan)        # transformers' model with our stages inside, on the meta device
sites = model_sites(config)        # every quantisable tensor, from the config alone
"""

from __future__ import annotations

from ssmquant.families.shell import Block, Shell, build, model_sites
from ssmquant.families.table import FAMILIES, Family, family_of

__all__ = ["FAMILIES", "Block", "Family", "Shell", "build", "family_of", "model_sites"]
