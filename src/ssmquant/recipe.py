"""`Recipe`: what is wanted, as a YAML file: transforms, named schemes, rules from site patterns to schemes, options.

A recipe is asked for by reference: ``NAME_OR_FILE[+option=value…][+keep=PATTERN…]``.

    load_recipe("quamba2-w8a8+ssm_state=float16+keep=layers.*.y")

Later rules win over earlier ones; a site that no rule matches stays float32; ``keep`` leaves sites in float32. A file
may extend a shipped recipe (``extends: quamba2-w8a8``): its rules and transforms come after the other's. ``$name`` in
place of a value (``group_size: $group_size``) stands for what is chosen for that option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from os.path import isfile
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml.constructor import ConstructorError

from ssmquant.errors import RecipeError, nearest
from ssmquant.scheme import MixedPrecision, TensorScheme

__all__ = ["Choose", "Option", "Recipe", "Rule", "TransformStep", "load_recipe", "shipped_recipes"]


MixerKind = Literal["mamba1", "mamba2"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# Options whose values cannot be listed: how they are written, for the machine and in words.
_FORMS = {
    "whole": (r"[1-9]\d*", "a whole number above 0"),
    "budget": (r"\d+(\.\d+)?(bits|mb)", "bits a weight or megabytes of the model (4.5bits, 120mb)"),
    "percent": (r"100%|\d{1,2}(\.\d+)?%", "a percentage (25%)"),
}


class Option(_Strict):
    """A choice that a recipe leaves to the user.

    Attributes:
        help: one line.
        choices: what it may be, where that can be listed.
        form: how it is written, where it cannot: ``whole`` (a number above 0), ``budget`` (4.5bits), ``percent``.
        default: what it is unless asked otherwise.
    """

    help: str
    choices: tuple[str, ...] | None = Field(default=None, min_length=2)
    form: Literal["whole", "budget", "percent"] | None = None
    default: str

    @model_validator(mode="after")
    def _default_is_possible(self) -> Self:
        if (self.choices is None) == (self.form is None):
            raise ValueError("an option has either choices or a form")
        if reason := self.refuses(self.default):
            raise ValueError(f"default {self.default!r} {reason}")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """What it may be, in words for tables; the default first."""
        if self.form:
            return (self.default, _FORMS[self.form][1])
        assert self.choices
        return tuple(sorted(self.choices, key=self.default.__ne__))

    def refuses(self, value: str) -> str | None:
        """Return why the option cannot have a value, to be read after the value; None if it can."""
        if self.form:
            pattern, words = _FORMS[self.form]
            return None if re.fullmatch(pattern, value) else f"is not {words}"
        assert self.choices
        return None if value in self.choices else f"is none of the choices; {nearest(value, self.choices)}"


class _Conditional(_Strict):
    """Something that applies only under some options, or to some mixers (``mamba1``, ``mamba2``)."""

    when: Mapping[str, str] = Field(default_factory=dict)
    mixers: tuple[MixerKind, ...] = ("mamba1", "mamba2")

    def applies(self, options: Mapping[str, str], mixer: str) -> bool:
        """Return whether it applies under these options to this mixer."""
        return mixer in self.mixers and all(options.get(name) == value for name, value in self.when.items())


class Rule(_Conditional):
    """Sites whose name matches one of the patterns get a scheme.

    Attributes:
        match: shell patterns over site names, ``layers.*.in_proj.weight``.
        scheme: name of a scheme of the recipe.
        quantizer: how the codes of a weight are chosen: a name of `quantizers`, ``rtn`` or ``gptq`` say.
    """

    match: tuple[str, ...] = Field(min_length=1)
    scheme: str
    quantizer: str = "rtn"


class TransformStep(_Conditional):
    """A transform of the float model.

    Attributes:
        name: name of the transform.
        params: its numbers, where it has any (SmoothQuant's alpha).
    """

    name: str
    params: Mapping[str, float] = Field(default_factory=dict)


class Choose(_Strict):
    """What is chosen by measurement, under a budget: the scheme of some weights, and layers with float activations.

    Attributes:
        match: shell patterns of weights; those that the rules give one of the schemes are chosen for.
        schemes: names of schemes of the recipe.
        budget: ``4.5bits``, of the chosen weights on average, scales included; or ``120mb``, of all of the model's.
        float_share: largest share of the layers' multiplications that those with float activations do, ``25%``.
    """

    match: tuple[str, ...] = Field(min_length=1)
    schemes: tuple[str, ...] = Field(min_length=2)
    budget: str = Field(pattern=_FORMS["budget"][0])
    float_share: str = Field(pattern=_FORMS["percent"][0])


class Recipe(_Strict):
    """What is wanted of a quantised model.

    Attributes:
        name: as it is asked for.
        description: one line.
        source: paper and section.
        refuses: reason by mixer kind that the recipe does not fit.
        options: choices left to the user, by name.
        transforms: in order of application.
        schemes: named schemes for the rules.
        rules: in order; later ones win.
        choose: what is left to measurement; None for nothing.
        chosen: value of each option.
        keep: patterns of sites that stay float32.
    """

    name: str
    description: str
    source: str
    refuses: Mapping[MixerKind, str] = Field(default_factory=dict)
    options: Mapping[str, Option] = Field(default_factory=dict)
    transforms: tuple[TransformStep, ...] = ()
    schemes: Mapping[str, TensorScheme] = Field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    choose: Choose | None = None
    chosen: Mapping[str, str] = Field(default_factory=dict)
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        named = [rule.scheme for rule in self.rules] + list(self.choose.schemes if self.choose else ())
        for scheme in named:
            if scheme not in self.schemes:
                raise ValueError(f"a rule names the scheme {scheme!r}; {nearest(scheme, self.schemes)}")
        for settings in (self.chosen, *(step.when for step in (*self.rules, *self.transforms))):
            for name, value in settings.items():
                if name not in self.options or self.options[name].refuses(value):
                    raise ValueError(f"it has {name}={value}, which is no option of the recipe")
        return self

    @property
    def settings(self) -> dict[str, str]:
        """Value of every option, chosen or by default."""
        return {name: self.chosen.get(name, option.default) for name, option in self.options.items()}

    @property
    def reference(self) -> str:
        """The reference that asks for this recipe with these options."""
        words = [self.name, *(f"{k}={v}" for k, v in self.chosen.items()), *(f"keep={p}" for p in self.keep)]
        return "+".join(words)


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes inside the package, by name."""
    folder = resources.files("ssmquant").joinpath("recipes")
    return {
        Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if str(f).endswith(".yaml")
    }


def load_recipe(reference: str | Path | Recipe) -> Recipe:
    """Return the recipe that a reference asks for.

    Args:
        reference: name of a shipped recipe or path of a YAML file, with ``+option=value`` words; or a recipe.

    Raises:
        RecipeError: it does not exist, cannot be read, or has unknown keys, options or values.
    """
    if isinstance(reference, Recipe):
        return reference
    name, words = _taken_apart(str(reference))
    content = _read(name)
    try:
        options = _Options.model_validate({"options": content.get("options", {})}).options
        asked = _asked_for(content["name"], options, words)
        content = _extended(content, asked)
        settings = {key: option.default for key, option in options.items()}
        if isinstance(content.get("chosen"), dict):
            settings |= content["chosen"]
        parts = {key: _substituted(content[key], settings, name) for key in _TEMPLATES & content.keys()}
        return Recipe.model_validate({**content, **parts})
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_explain(error)}") from error


class _Options(_Strict):
    """The options of a recipe, of which the rest of it is made."""

    options: Mapping[str, Option]


# Parts of a recipe in which ``$name`` stands for an option.
_TEMPLATES = {"transforms", "schemes", "rules", "choose"}


def _asked_for(recipe: str, options: Mapping[str, Option], words: list[str]) -> dict[str, Any]:
    """Return what ``option=value`` and ``keep=PATTERN`` words add to a recipe."""
    chosen: dict[str, str] = {}
    keep: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RecipeError(f"recipe {recipe!r}: options are written option=value, found {word!r}")
        if name == "keep":
            keep.append(value)
        elif name not in options:
            hint = nearest(name, [*options, "keep"])
            raise RecipeError(f"recipe {recipe!r} has no option {name!r}; {hint}")
        elif reason := options[name].refuses(value):
            raise RecipeError(f"recipe {recipe!r}: {name}={value!r} {reason}")
        else:
            chosen[name] = value
    return {key: value for key, value in (("chosen", chosen), ("keep", keep)) if value}


def _substituted(part: Any, settings: Mapping[str, str], recipe: str) -> Any:
    """Return a part of a recipe with every value ``$name`` replaced by what the option of that name is set to."""
    if isinstance(part, dict):
        return {key: _substituted(value, settings, recipe) for key, value in part.items()}
    if isinstance(part, list):
        return [_substituted(value, settings, recipe) for value in part]
    if not isinstance(part, str) or not part.startswith("$"):
        return part
    if part[1:] not in settings:
        raise RecipeError(
            f"recipe {recipe}: {part!r} stands for no option of it; {nearest(part[1:], settings)}"
        )
    return settings[part[1:]]


def _taken_apart(reference: str) -> tuple[str, list[str]]:
    """Return name or file, and the words behind it; a file's path may have a plus in it."""
    words = reference.split("+")
    for count in range(len(words), 1, -1):
        path = "+".join(words[:count])
        if isfile(path):  # Path.is_file raises for a name that is too long to be one
            return path, words[count:]
    return words[0], words[1:]


class _UniqueKeys(yaml.SafeLoader):
    """YAML without code, in which a key that is given twice is an error: one of the two values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return mapping


def _read(name: str) -> dict[str, Any]:
    """Return a recipe's content, with that of the recipe that it extends before its own."""
    shipped = shipped_recipes()
    path = shipped.get(name, Path(name))
    if not isfile(path):
        raise RecipeError(f"no recipe {name!r}, and no such file; {nearest(name, shipped)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}; check its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: not a YAML text in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path}: must be a mapping of {', '.join(Recipe.model_fields)}")
    content = {"name": path.stem, **content}
    base = content.pop("extends", None)
    return content if base is None else _extended(_shipped_base(path, base), content)


def _shipped_base(path: Path, base: Any) -> dict[str, Any]:
    """Return the content of the recipe that another extends: a shipped one, so that none can go in circles."""
    shipped = shipped_recipes()
    if not isinstance(base, str) or base not in shipped or shipped[base] == path:
        raise RecipeError(
            f"recipe {path}: extends {base!r}, which is no other shipped recipe; {nearest(str(base), shipped)}"
        )
    return _read(base)


def _extended(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the base with the own content added: lists go on, mappings are joined, all else is replaced."""
    joined = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            joined[key] = {**before, **value}
        elif isinstance(before, list) and isinstance(value, list):
            joined[key] = [*before, *value]
        else:
            joined[key] = value
    return joined


def _explain(error: ValidationError) -> str:
    """Return one line for each fault, with the nearest known name for an unknown key."""
    fields = {
        "extends",
        *Recipe.model_fields,
        *Rule.model_fields,
        *Option.model_fields,
        *Choose.model_fields,
        *TensorScheme.model_fields,
        *MixedPrecision.model_fields,
    }
    lines = []
    for fault in error.errors():
        place: Any = ".".join(str(part) for part in fault["loc"]) or "recipe"
        hint = f"; {nearest(str(fault['loc'][-1]), fields)}" if fault["type"] == "extra_forbidden" else ""
        lines.append(f"{place}: {fault['msg']}{hint}")
    return "; ".join(lines)
