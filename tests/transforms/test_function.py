"""Transforms keep the function: a float64 model has the same logits before and after, each alone and all together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.tiny_models import CONFIGS, MAMBA1, float_model, random_ids, saved
from torch import Tensor

import ssmquant
from ssmquant.calibrate import calibrate
from ssmquant.errors import InputError, SsmquantError
from ssmquant.families import Shell, build
from ssmquant.files import digests
from ssmquant.runtime.engine import Engine
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.transforms import TRANSFORMS, Context

#: Of float64 logits, relative to the largest of them: far above what reordered sums give, far below any mistake.
EXACT = 1e-9
PIECEWISE = TensorScheme(granularity=Granularity.PER_HEAD_GROUP, head_groups=4, channel_groups=4)
INT8 = TensorScheme()
ROWS = TensorScheme(granularity=Granularity.PER_CHANNEL)


@cache
def double_model(name: str) -> Shell:
    """Return a tiny model in float64; shared by all tests, none may change it."""
    shell = ssmquant.load(saved(name)).shell
    shell.model.double()
    return shell


def sharing(source: Shell, *, tied: bool) -> Shell:
    """Return a shell that shares the source's tensors; a head that is to be untied gets the embedding's."""
    target = build(source.config, tied=tied)
    tensors = source.model.state_dict()
    if source.tied and not tied:
        tensors |= {"lm_head.linear.weight": source.embedding.weight}
    target.model.load_state_dict(tensors, assign=True)
    return target


@torch.no_grad()
def logits(shell: Shell) -> Tensor:
    hidden, _ = Engine(shell).hidden(random_ids(2, 40), None)
    found: Tensor = shell.head(hidden)
    return found


def applicable(name: str) -> list[str]:
    return [transform for transform in TRANSFORMS if transform != "reorder" or name not in MAMBA1]


def with_required(name: str) -> list[str]:
    return [*TRANSFORMS[name].requires, name]


@torch.no_grad()
def transformed(source: Shell, names: Iterable[str]) -> Shell:
    names = list(names)
    shell = sharing(source, tied=source.tied and not any(TRANSFORMS[name].unties for name in names))
    schemes = {site: INT8 for site, _ in shell.activations() if not site.endswith(".state")}
    schemes |= {site: ROWS for site, _ in shell.weights()}
    schemes |= {f"layers.{layer}.x": PIECEWISE for layer in range(len(shell.blocks))}
    context = Context(schemes)
    for name in names:
        transform = TRANSFORMS[name]
        needs = transform.needs(shell)
        if needs:
            context.statistics = calibrate(shell, random_ids(4, 32, seed=3), needs)
        context.params = {param: (low + high) / 2 for param, (low, high) in transform.params.items()}
        transform.apply(shell, context)
    return shell


def difference(name: str, names: Iterable[str]) -> float:
    before, after = logits(double_model(name)), logits(transformed(double_model(name), names))
    assert before.dtype == after.dtype == torch.float64
    return float((after - before).abs().max() / before.abs().max())


ALONE = [(name, transform) for name in CONFIGS for transform in applicable(name)]


@pytest.mark.parametrize(("name", "transform"), ALONE)
def test_a_transform_keeps_the_function(name: str, transform: str) -> None:
    assert difference(name, with_required(transform)) <= EXACT


@pytest.mark.parametrize("name", CONFIGS)
def test_all_transforms_together_keep_the_function(name: str) -> None:
    assert difference(name, applicable(name)) <= EXACT


@pytest.mark.parametrize(("name", "transform"), ALONE)
def test_a_transform_changes_weights(name: str, transform: str) -> None:
    """What leaves all weights as they are would keep the function as well."""
    source = double_model(name)
    before = transformed(source, TRANSFORMS[transform].requires).model.state_dict()
    after = transformed(source, with_required(transform)).model.state_dict()
    assert any(not torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["mamba-untied-biased", "mamba2-two-groups"])
def test_the_tensors_of_the_source_are_left_alone(name: str) -> None:
    source = double_model(name)
    before = digests(source.model.state_dict())
    transformed(source, applicable(name))
    assert digests(source.model.state_dict()) == before
    assert source.blocks[0].mixer.hadamard is False


def test_what_a_transform_does_not_change_is_shared() -> None:
    """A copy of the model costs what it changes."""
    source = double_model("mamba2-two-groups").blocks[0].mixer
    mixer = transformed(double_model("mamba2-two-groups"), ["fuse_norm"]).blocks[0].mixer
    assert mixer.conv1d.weight.data_ptr() == source.conv1d.weight.data_ptr()
    assert mixer.in_proj.weight.data_ptr() != source.in_proj.weight.data_ptr()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("fuse_norm", lambda block: block.norm.weight),
        ("hadamard_out", lambda block: block.mixer.out_proj.weight),
        ("smooth", lambda block: block.norm.weight),
        ("reorder", lambda block: block.mixer.D),
    ],
)
def test_half_of_a_transform_shows(part: str, change: object) -> None:
    """The bound is not met by a transform that forgets one of the tensors that it should change."""
    source = double_model("mamba2-two-groups")
    shell = transformed(source, [part])
    with torch.no_grad():
        change(shell.blocks[1]).copy_(change(source.blocks[1]))  # type: ignore[operator]
    assert float((logits(shell) - logits(source)).abs().max()) > 1e3 * EXACT


def test_fused_gains_are_ones() -> None:
    shell = transformed(double_model("mamba2-two-groups"), ["fuse_norm"])
    for block in shell.blocks:
        assert bool((block.norm.weight == 1).all())
        assert bool((block.mixer.norm.weight == 1).all())  # type: ignore[union-attr]
    assert not bool((shell.final_norm.weight == 1).all())


def test_rotation_takes_a_head_of_its_own() -> None:
    shell = sharing(double_model("mamba2-two-groups"), tied=True)
    with pytest.raises(SsmquantError, match="head of its own"):
        TRANSFORMS["rotate_residual"].apply(shell, Context({}))


def test_rotation_spreads_an_outlier_channel() -> None:
    source = double_model("mamba2-untied-biased")
    table = source.embedding.weight.detach().clone()
    table[:, 7] *= 50
    marked = sharing(source, tied=False)
    marked.embedding.weight = torch.nn.Parameter(table)

    def peak(weight: Tensor) -> float:
        columns = weight.detach().abs().amax(dim=0)
        return float(columns.max() / columns.median())

    assert peak(marked.embedding.weight) > 40
    assert peak(transformed(marked, ["fuse_norm", "rotate_residual"]).embedding.weight) < 3


def test_hadamard_needs_a_size_that_has_a_matrix() -> None:
    dims = replace(float_model("mamba").shell.blocks[0].mixer.dims, d_model=47, d_inner=94)
    with pytest.raises(InputError, match="no transform of size 47"):
        TRANSFORMS["rotate_residual"].check(dims)
    with pytest.raises(InputError, match="no transform of size 94"):
        TRANSFORMS["hadamard_out"].check(dims)
