"""Models with random contents, made directly in quantised form: speed needs shapes and codes, not trained weights.

    model = random_shape("mamba2-2.7b", "quamba2-w8a8")     # takes the memory of its codes, little more

Codes are uniform, and scales such that activations keep about unit variance from layer to layer, so that no float
overflows and none falls below the normal range (processors are slow there, and a trained model is never there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssmquant.bench.shapes import shape_config
from ssmquant.families import Config, build
from ssmquant.model import Model
from ssmquant.modules.activation import Activation
from ssmquant.modules.mixer import StateSite
from ssmquant.planning import Plan
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.resolution import resolve
from ssmquant.scheme import Granularity, TensorScheme

__all__ = ["random_model", "random_shape", "shape_plan"]

_ABSMAX = 4.0  # of an activation of unit variance
_SEED = 0


def random_shape(name: str, recipe: str | Path | Recipe, device: str = "cpu") -> Model:
    """Return a random model of a named shape, made on a device; other arguments and errors as for `shape_plan`."""
    return random_model(name, shape_config(name), shape_plan(name, recipe), device)


def shape_plan(name: str, recipe: str | Path | Recipe) -> Plan:
    """Return the plan of a recipe for a named shape.

    Args:
        name: a key of `ssmquant.bench.shapes.SHAPES`.
        recipe: recipe, reference of one or YAML file.

    Raises:
        InputError: there is no such shape.
        RecipeError: the recipe does not exist or does not fit the shape.
    """
    config = shape_config(name)
    return resolve(load_recipe(recipe), config, tied=bool(config.tie_word_embeddings))


@torch.no_grad()
def random_model(name: str, config: Config, plan: Plan, device: str = "cpu") -> Model:
    """Return a model of a plan with random contents, the same each time; every tensor is filled where it is.

    Args:
        name: of the model.
        config: its config.
        plan: schemes of its sites.
        device: where it is made.
    """
    shell = build(config, plan.schemes, hadamard=plan.hadamard, tied=plan.tied)
    # Not to_empty: from tensors on the meta device it takes a way through PyTorch that imports sympy.
    empty = {
        path: torch.empty(t.shape, dtype=t.dtype, device=device)
        for path, t in shell.model.state_dict().items()
    }
    shell.model.load_state_dict(empty, assign=True)
    random = torch.Generator(device).manual_seed(_SEED)
    coded: set[int] = set()
    for _, weight in shell.weights():
        for part, tensor in weight.stored.items():
            _WEIGHTS[part](tensor, weight.shape[1], weight.scheme, random)
            coded.add(tensor.data_ptr())
    for _, site in shell.activations():
        _fill_site(site)
    for path, parameter in shell.model.named_parameters():
        if parameter.data_ptr() not in coded:
            _fill_float(path, parameter, random)
    return Model(name, shell, None, plan)


def _fill_float(path: str, tensor: Tensor, random: torch.Generator) -> None:
    """Fill a parameter that is no quantisable weight, as the papers' own initialisation does."""
    stage = ".".join(path.split(".")[-2:])
    if stage.endswith("A_log"):
        tensor.uniform_(1.0, 16.0, generator=random).log_()
    elif stage.endswith("dt_bias") or stage == "dt_proj.bias":
        dt = tensor.uniform_(math.log(1e-3), math.log(1e-1), generator=random).exp_()
        tensor.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
    else:
        tensor.fill_(0.0 if stage.endswith("bias") else 1.0)  # biases; D and the gains of norms


def _fill_site(site: Activation | StateSite) -> None:
    """Give a site with static scales those of unit variance, its channels grouped as calibration groups them."""
    scheme = site.scheme
    if not scheme.is_static_int:
        return
    site.scale.fill_(_ABSMAX / _largest(scheme))
    if "group" in dict(site.named_buffers()):
        site.group.copy_(_groups(site.dims, scheme))


def _groups(dims: Mapping[str, int], scheme: TensorScheme) -> Tensor:
    """Return which scale each channel has, int64 ``[C]``."""
    groups = torch.arange(dims["ngroups"])
    if scheme.granularity is Granularity.PER_STATE_GROUP:
        return groups.repeat_interleave(dims["d_state"])
    assert scheme.head_groups and scheme.channel_groups
    heads, headdim = dims["heads"], dims["headdim"]
    m, n = min(scheme.head_groups, heads), min(scheme.channel_groups, headdim)
    clusters = (torch.arange(heads) * m // heads)[:, None] * n + torch.arange(headdim) * n // headdim
    return (groups[:, None, None] * m * n + clusters).flatten()


def _largest(scheme: TensorScheme) -> int:
    return int(2 ** (scheme.bits - 1)) - 1


def _unit_scale(columns: int, largest: int) -> float:
    """Return the scale under which uniform codes of ±largest give a row of unit norm."""
    return math.sqrt(3.0 / columns) / largest


def _fill_packed(tensor: Tensor, columns: int, scheme: TensorScheme, random: torch.Generator) -> None:
    """Fill bytes of two codes: places in a table, or signed codes from -7 to 7."""
    first, end = (0, 2**scheme.bits) if scheme.kind == "lut" else (-7, 8)
    for part in tensor.split(256):  # what follows takes copies, and freed ones stay in the allocator's hands
        low, high = (
            torch.randint(first, end, part.shape, generator=random, dtype=torch.int8, device=part.device)
            for _ in range(2)
        )
        part.copy_((low & 15 | high << 4).view(torch.uint8))


def _fill_table(tensor: Tensor, columns: int, scheme: TensorScheme, random: torch.Generator) -> None:
    tensor.copy_(torch.linspace(-2.0, 2.0, tensor.shape[1]) / math.sqrt(columns))


def _fill_positions(tensor: Tensor, columns: int, scheme: TensorScheme, random: torch.Generator) -> None:
    torch.arange(len(tensor), out=tensor).mul_(max(1, int(100 / (scheme.sparse or 100))))


def _codes(tensor: Tensor, columns: int, scheme: TensorScheme, random: torch.Generator) -> None:
    tensor.random_(-127, 128, generator=random)


Fill = Callable[[Tensor, int, TensorScheme, torch.Generator], object]
# What a format stores, by name of the tensor: filled in place, given K and the scheme.
_WEIGHTS: dict[str, Fill] = {
    "weight": lambda tensor, columns, _, random: tensor.normal_(0.0, columns**-0.5, generator=random),
    "codes": _codes,
    "outliers": _codes,
    "packed": _fill_packed,
    "scale": lambda tensor, columns, scheme, _: tensor.fill_(_unit_scale(columns, _largest(scheme))),
    "outlier_scale": lambda tensor, columns, *_: tensor.fill_(_unit_scale(columns, 127)),
    "zero_point": lambda tensor, *_: tensor.zero_(),
    "grid": lambda tensor, *_: tensor.fill_(0x81),  # steps of one, zero point 0
    "order": lambda tensor, columns, _, random: tensor.copy_(
        torch.randperm(columns, generator=random, device=tensor.device)
    ),
    "table": _fill_table,
    "values": lambda tensor, columns, _, random: tensor.normal_(0.0, columns**-0.5, generator=random),
    "positions": _fill_positions,
}
