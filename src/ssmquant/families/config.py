"""`Config`: what a config.json says of a model, under transformers' names.

config = model_config(read_config(folder), str(folder))
config.hidden_size, config.to_dict()

A config.json that names every option of its family is read as it is. What one leaves out, transformers' config class
fills in; transformers is imported for that alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ssmquant.errors import ModelError
from ssmquant.families.original import convert_config, is_original
from ssmquant.families.table import family_of

__all__ = ["Config", "model_config"]


class Config(SimpleNamespace):
    """The options of a model as attributes, by transformers' names.

    `model_config` has checked those that its family needs; others are carried along.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return dict(vars(self))


def model_config(raw: Mapping[str, Any], where: str) -> Config:
    """Return the config of a model.

    Args:
        raw: the content of a config.json, transformers' or an original one.
        where: the folder that it is from, for messages.

    Raises:
        ModelError: the family is not known, or an option that it needs is of the wrong kind.
    """
    where = f"{where}/config.json"
    model_type: str | None
    if is_original(raw):
        model_type, options = convert_config(raw)
    else:
        options = {
            key: value for key, value in raw.items() if key not in ("quantization_config", "model_type")
        }
        model_type = raw.get("model_type")
    family = family_of(model_type, where)
    # transformers divides loaded out_proj weights by sqrt(layers) under this flag, which is about initialisation.
    options["rescale_prenorm_residual"] = False
    if missing := family.options.keys() - options.keys():
        filled = _filled_in(family.name, options, where)
        options |= {name: filled[name] for name in missing}
    problems = [
        f"{name} must be {value.kind}, found {options[name]!r}"
        for name, value in family.options.items()
        if not value.legal(options[name])
    ]
    if problems:
        raise ModelError(f"{where}: not a {family.name} config; mend it:\n  " + "\n  ".join(problems))
    return Config(model_type=family.name, **options)


def _filled_in(model_type: str, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options with transformers' defaults for the others."""
    from transformers import AutoConfig

    try:
        filled: dict[str, Any] = AutoConfig.for_model(model_type, **options).to_dict()
    except Exception as error:  # transformers raises many kinds for values that it does not accept
        raise ModelError(
            f"{where}: transformers cannot read it as a {model_type!r} config: {error}"
        ) from error
    return filled
