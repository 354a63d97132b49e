"""`load`: a model from a folder or the Hub: transformers' checkpoints, original state-spaces ones, and our own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmquant.checkpoint import is_quantised, load_quantised, recorded_digests
from ssmquant.errors import ModelError
from ssmquant.families import Config, Shell, build, family_of, model_config
from ssmquant.families.original import convert_config, convert_tensors, is_original
from ssmquant.files import TensorSpec, check_tensors, read_config, read_tensors, resolve
from ssmquant.model import Model
from ssmquant.planning import Plan
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.resolution import resolve as resolve_plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load", "plan"]


def load(
    path_or_id: str | Path,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_pickle: bool = False,
) -> Model:
    """Return a model, float or quantised as its folder has it.

    Args:
        path_or_id: local folder, or id on the Hugging Face Hub.
        tokenizer: tokenizer, or where to load it from; by default the model's own folder.
        revision: branch, tag or commit on the Hub.
        trust_pickle: allow code inside a ``pytorch_model.bin`` to run; only for files that you trust.

    Returns:
        the model with float32 weights, or with its codes.

    Raises:
        ModelError: the folder is missing, damaged or of no known family.
        CheckpointError: the folder was quantised by us and is damaged.
    """
    folder = resolve(path_or_id, revision)
    raw = read_config(folder)
    if is_quantised(raw):
        shell, plan, provenance = load_quantised(folder, model_config(raw, str(folder)))
        return Model(
            str(path_or_id), shell, _tokenizer(folder, tokenizer), plan, provenance, recorded_digests(folder)
        )
    config = model_config(raw, str(folder))  # before the tensors: a foreign model is refused at once
    tensors = read_tensors(folder, trust_pickle=trust_pickle)
    if is_original(raw):
        tensors = convert_tensors(convert_config(raw)[1], tensors)
    return Model(str(path_or_id), _float_shell(folder, config, tensors), _tokenizer(folder, tokenizer))


def plan(model: Model | str | Path, recipe: str | Path | Recipe) -> Plan:
    """Return what a recipe would do to a model; of a folder only config.json is read.

    Args:
        model: a float model, a folder or a Hub id.
        recipe: recipe, reference of one or YAML file.

    Raises:
        RecipeError: the recipe does not exist or does not fit the model.
        ModelError: the model cannot be read.
    """
    if isinstance(model, Model):
        return resolve_plan(load_recipe(recipe), model.config, tied=model.shell.tied)
    folder = resolve(model)
    raw = read_config(folder)
    if is_quantised(raw):
        raise ModelError(f"{model} is quantised already; plan the float model that it was made from")
    config = model_config(raw, str(folder))
    return resolve_plan(load_recipe(recipe), config, tied=config.tie_word_embeddings)


def _float_shell(folder: Path, config: Config, tensors: dict[str, Tensor]) -> Shell:
    """Return the float32 model of a folder's tensors."""
    tensors = {name.replace("backbone.embedding.", "backbone.embeddings."): t for name, t in tensors.items()}
    family, tied = family_of(config.model_type, str(folder)), config.tie_word_embeddings
    head = tensors.pop(f"{family.head}.weight", None)
    if not tied:
        if head is None:
            raise ModelError(
                f"{folder}: {family.head}.weight is missing and config.json does not tie it to the embedding; "
                "set tie_word_embeddings to true if the model was trained so"
            )
        tensors[f"{family.head}.linear.weight"] = head
    shell = build(config, tied=tied)
    expected = {name: TensorSpec(tuple(t.shape)) for name, t in shell.model.state_dict().items()}
    check_tensors(tensors, expected, source=str(folder))
    shell.model.load_state_dict(
        {n: t.to(torch.float32) for n, t in tensors.items()}, strict=True, assign=True
    )
    return shell


def _tokenizer(
    folder: Path, given: str | Path | PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer: as given, loaded from where it says, or from the model's folder if it has one."""
    if given is not None and not isinstance(given, str | Path):
        return given
    if given is None and not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        return None
    from transformers import AutoTokenizer

    source = folder if given is None else Path(given)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(given or folder))
    except Exception as error:  # tokenizers and transformers raise many kinds for damaged files
        raise ModelError(
            f"the tokenizer in {source} cannot be read: {error}; pass tokenizer=… with another"
        ) from error
    return tokenizer
