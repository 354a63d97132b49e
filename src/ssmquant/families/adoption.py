"""Transformers' own model around our stages, for its forward and its `generate`.

Importing this imports nothing of transformers; calling it imports its modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssmquant.families.config import Config
from ssmquant.families.shell import Shell

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["adopt", "transformers_config", "transformers_model"]


def transformers_config(config: Config) -> PreTrainedConfig:
    """Return transformers' config object of a config."""
    from transformers import AutoConfig

    options = config.to_dict()
    made: PreTrainedConfig = AutoConfig.for_model(options.pop("model_type"), **options)
    return made


def transformers_model(shell: Shell) -> PreTrainedModel:
    """Return transformers' model with the shell's stages inside: the same modules, not copies of them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(transformers_config(shell.config))
    adopt(model, shell)
    model.eval()
    return model


def adopt(model: PreTrainedModel, shell: Shell) -> None:
    """Put a shell's stages into a transformers model of the same config, in place; its own weights are dropped."""
    family, backbone = shell.family, getattr(model, shell.family.backbone)
    setattr(backbone, family.embedding, shell.embedding)
    for theirs, ours in zip(getattr(backbone, family.layers), shell.blocks, strict=True):
        setattr(theirs, family.block_norm, ours.norm)
        setattr(theirs, family.block_mixer, ours.mixer)
    setattr(backbone, family.final_norm, shell.final_norm)
    setattr(model, family.head, shell.head)
    # Tying is ours: transformers would look for parameters that codes do not have.
    model._tied_weights_keys = None  # type: ignore[assignment]
    model.all_tied_weights_keys = {}
    model.config.tie_word_embeddings = False
