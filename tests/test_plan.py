"""Plans: golden tables, and everything that is refused before anything runs.

The tables are in tests/golden. After a change that is meant, write them anew and read the difference:

    SSMQUANT_GOLDEN=write pytest tests/test_plan.py
"""

from __future__ import annotations

import copy
import json
import os
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from rich.console import Console
from tests.tiny_models import CONFIGS, WIDE, fitting, float_model, quantised, saved

import ssmquant
from ssmquant.errors import ModelError, RecipeError
from ssmquant.planning import Plan
from ssmquant.recipe import load_recipe, shipped_recipes
from ssmquant.resolution import resolve
from ssmquant.scheme import FLOAT32
from ssmquant.sites import SiteKind

GOLDEN = Path(__file__).with_name("golden")
#: Of some recipe options: a state in float16, a float head and embedding that are no longer one table, sites kept.
VARIANTS = {
    "quamba2-w8a8+ssm_state=float16+head=float16": "mamba2-wide",
    "quamba-w8a8+embedding=float16+keep=layers.1.*": "mamba-wide",
}


def plan_of(recipe: Any, model: str) -> Plan:
    return resolve(load_recipe(recipe), CONFIGS[model], tied=CONFIGS[model].tie_word_embeddings)


def two_layers(model: str) -> Any:
    config = copy.deepcopy(CONFIGS[model])
    config.num_hidden_layers = 2
    return config


def rendered(plan: Plan) -> str:
    text = StringIO()
    Console(file=text, width=150, color_system=None, legacy_windows=False).print(plan.table())
    summary = ", ".join(f"{count} {scheme}" for scheme, count in plan.summary().items())
    tail = [
        f"transforms: {', '.join(plan.transforms) or 'none'}",
        f"head: {'the embedding' if plan.tied else 'of its own'}",
        f"sites: {summary}",
        f"weights: {plan.weight_bytes()} bytes, {plan.float_bytes()} in 16 bits",
    ]
    return "\n".join(line.rstrip() for line in [*text.getvalue().splitlines(), *tail]) + "\n"


def golden(recipe: str, model: str) -> Path:
    return GOLDEN / f"{recipe.replace('*', '_')}.{model}.txt"


@pytest.mark.parametrize(("recipe", "model"), [*fitting(), *VARIANTS.items()])
def test_plans_are_the_golden_ones(recipe: str, model: str) -> None:
    found = rendered(resolve(load_recipe(recipe), two_layers(model), tied=True))
    path = golden(recipe, model)
    if os.environ.get("SSMQUANT_GOLDEN") == "write":
        path.write_text(found, encoding="utf-8")
    assert path.is_file(), "a new recipe: write its golden plan (see the top of this file) and read it"
    assert found == path.read_text(encoding="utf-8")


def test_no_golden_plan_is_left_over() -> None:
    assert set(GOLDEN.glob("*.txt")) == {golden(*case) for case in [*fitting(), *VARIANTS.items()]}


@pytest.mark.parametrize(("recipe", "model"), fitting())
def test_a_plan_is_the_same_through_json(recipe: str, model: str) -> None:
    plan = plan_of(recipe, model)
    text = json.dumps(plan.to_json())
    assert Plan.from_json(json.loads(text), CONFIGS[model]) == plan


def test_a_plan_of_a_folder_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved("mamba2-two-groups") / "config.json").read_bytes())
    plan = ssmquant.plan(tmp_path, "quamba2-w8a8")
    assert plan == ssmquant.plan(float_model("mamba2-two-groups"), "quamba2-w8a8")
    assert plan == quantised("mamba2-two-groups", "quamba2-w8a8").plan


def test_a_quantised_folder_is_not_planned_again(tmp_path: Path) -> None:
    quantised("mamba2-two-groups", "w8a8-dynamic").save(tmp_path / "out")
    with pytest.raises(ModelError, match="quantised already; plan the float model"):
        ssmquant.plan(tmp_path / "out", "fp16")


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mamba", "fp16"),
        ("mamba-untied-biased", "quamba-w8a8"),
        ("mamba-wide", "gptq-w4a16"),
        ("mamba2-two-groups", "w8a8-naive"),
        ("mamba2-two-groups", "quamba2-w8a8+head=float16"),
        ("mamba2-wide", "quamba2-w4a8"),
    ],
)
def test_weight_bytes_are_those_of_the_stored_tensors(name: str, recipe: str) -> None:
    model = quantised(name, recipe)
    assert model.plan is not None
    stored = [tensor for _, weight in model.shell.weights() for tensor in weight.stored.values()]
    assert model.plan.weight_bytes() == sum(tensor.nbytes for tensor in stored)
    source = [weight.weight for _, weight in float_model(name).shell.weights()]
    if model.plan.tied == float_model(name).shell.tied:
        assert model.plan.float_bytes() == 2 * sum(tensor.numel() for tensor in source)


def test_schemes_name_what_is_not_float32() -> None:
    plan = plan_of("quamba2-w8a8+keep=layers.*.y", "mamba2-two-groups")
    assert "layers.0.y" not in plan.schemes
    assert plan.schemes["layers.0.x"].short() == "int8 per-head-group 4x4"
    assert plan.activation_schemes["layers.0.y"] == FLOAT32
    assert all(row.site.kind is SiteKind.WEIGHT for row in plan.rows if row.site.name.endswith(".weight"))
    assert plan.hadamard


def test_later_rules_win(tmp_path: Path) -> None:
    plan = plan_of(
        recipe_file(
            tmp_path,
            """
            - {match: [layers.*.out_proj.weight], scheme: row}
            - {match: [layers.1.*.weight], scheme: tensor}
            - {match: [layers.*.in_proj.weight], scheme: row}
            """,
        ),
        "mamba2",
    )
    found = {row.site.name: (row.scheme.short(), row.rule) for row in plan.rows}
    assert found["layers.0.out_proj.weight"] == ("int8 per-channel", "layers.*.out_proj.weight")
    assert found["layers.1.out_proj.weight"] == ("int8 per-tensor", "layers.1.*.weight")
    assert found["layers.1.in_proj.weight"] == ("int8 per-channel", "layers.*.in_proj.weight")
    assert found["layers.0.conv1d.weight"] == ("float32", "")


@pytest.mark.parametrize(
    ("model", "recipe", "tied"),
    [
        ("mamba2-two-groups", "quamba2-w8a8", True),
        ("mamba2-two-groups", "quamba2-w8a8+head=float16", False),  # one table cannot be int8 and float16
        ("mamba2-two-groups", "quamba2-w8a8+head=float16+embedding=float16", True),
        ("mamba2-untied-biased", "quamba2-w8a8", False),
    ],
)
def test_a_head_stays_tied_where_one_table_can_be_both(model: str, recipe: str, tied: bool) -> None:
    plan = plan_of(recipe, model)
    assert plan.tied is tied
    if not tied and CONFIGS[model].tie_word_embeddings:
        assert plan.weight_bytes() > plan_of("quamba2-w8a8", model).weight_bytes()


def recipe_file(folder: Path, rules: str, *, transforms: str = "[]") -> Path:
    text = f"""
        description: of the tests
        source: none
        transforms: {transforms}
        schemes:
          row: {{bits: 8, granularity: per-channel}}
          tensor: {{bits: 8, granularity: per-tensor}}
          token: {{bits: 8, granularity: per-token, dynamic: true}}
          piecewise: {{bits: 8, granularity: per-head-group, head_groups: 4, channel_groups: 4}}
          state-group: {{bits: 8, granularity: per-state-group}}
          group: {{bits: 4, granularity: per-group, group_size: 4}}
          wide-group: {{bits: 4, granularity: per-group, group_size: 128}}
          table: {{kind: lut, bits: 4, granularity: per-channel}}
          small: {{bits: 4, granularity: per-tensor}}
          half: {{kind: float, bits: 16}}
          clipped: {{bits: 8, granularity: per-channel, range: percentile, percentile: 99.9}}
          least: {{bits: 8, granularity: per-channel, range: mse}}
          state: {{bits: 8, granularity: per-tensor, interval: 16}}
        rules:
    """
    path = folder / "mine.yaml"
    path.write_text(dedent(text) + "".join(f"  {line}\n" for line in dedent(rules).strip().splitlines()))
    return path


@pytest.mark.parametrize(
    ("model", "rules", "messages"),
    [
        (
            "mamba2",
            "- {match: [layers.*.inproj.weight], scheme: row}",
            ["'layers.*.inproj.weight' matches no site", "did you mean 'layers.0.in_proj.weight'"],
        ),
        ("mamba", "- {match: [layers.*.B_in], scheme: tensor}", ["'layers.*.B_in' matches no site"]),
        (
            "mamba2",
            "- {match: [layers.*.in_proj.weight], scheme: row}\n- {match: [layers.*.hidden], scheme: row}",
            ["layers.0.hidden", "cannot leave the integer sum of in_proj", "use per-tensor or per-token"],
        ),
        ("mamba2", "- {match: [layers.*.x], scheme: piecewise}", ["layers.0.x", "'reorder'"]),
        (
            "mamba2",
            "- {match: [layers.*.x], scheme: state-group}",
            ["no meaning for an activation", "headdim"],
        ),
        ("mamba", "- {match: [layers.*.y], scheme: group}", ["layers.0.y", "float32 or int8"]),
        ("mamba", "- {match: [layers.*.in_proj.weight], scheme: token}", ["no weight format", "per-token"]),
        (
            "mamba",
            "- {match: [layers.*.in_proj.weight], scheme: wide-group}",
            ["layers.0.in_proj.weight", "do not divide", "48"],
        ),
        ("mamba", "- {match: [layers.*.state], scheme: tensor}", ["a reduced state needs an interval"]),
        ("mamba", "- {match: [layers.*.state], scheme: half}", ["a reduced state needs an interval"]),
        ("mamba", "- {match: [layers.*.state], scheme: token}", ["no meaning for a recurrent state"]),
        ("mamba", "- {match: [layers.*.y], scheme: half}", ["layers.0.y", "float32 or int8"]),
        ("mamba", "- {match: [layers.*.y], scheme: table}", ["layers.0.y", "float32 or int8"]),
        ("mamba", "- {match: [layers.*.y], scheme: small}", ["layers.0.y", "float32 or int8"]),
        ("mamba", "- {match: [layers.*.y], scheme: state}", ["layers.0.y", "interval", "state"]),
        ("mamba", "- {match: [layers.*.y], scheme: clipped}", ["layers.0.y", "percentile", "per-tensor"]),
        ("mamba", "- {match: [layers.*.y], scheme: least}", ["layers.0.y", "mse", "per-tensor"]),
        (
            "mamba",
            "- {match: [layers.*.out_proj.weight], scheme: least}",
            ["out_proj.weight", "mse", "quantizer"],
        ),
        ("mamba", "- {match: [embedding.weight], scheme: table}", ["embedding.weight", "linear layers"]),
        ("mamba", "- {match: [layers.*.conv1d.weight], scheme: group}", ["conv1d.weight", "linear layers"]),
        (
            "mamba",
            "- {match: [layers.*.in_proj.weight], scheme: row, quantizer: gpqt}",
            ["no quantizer 'gpqt'; did you mean 'gptq'"],
        ),
        (
            "mamba",
            "- {match: [layers.*.conv1d.weight], scheme: row, quantizer: gptq}",
            ["which only linear layers have; use rtn"],
        ),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, model: str, rules: str, messages: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(recipe_file(tmp_path, rules), model)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "transforms", "message"),
    [
        ("mamba2", "[{name: hadamard_out}, {name: fuse_norm}]", "transforms go in the order fuse_norm"),
        ("mamba2", "[{name: fuse_norm}, {name: fuse_norm}]", "transforms go in the order fuse_norm"),
        ("mamba2", "[{name: rotate_residual}]", "'rotate_residual' needs 'fuse_norm' before it"),
        ("mamba2", "[{name: fuse-norm}]", "no transform 'fuse-norm'; did you mean 'fuse_norm'"),
        ("mamba", "[{name: reorder}]", "recipe 'mine': reorder: Mamba-1 has no heads to cluster"),
        ("mamba2", "[{name: fuse_norm, params: {alpha: 0.5}}]", "'fuse_norm' takes the params []"),
        ("mamba2", "[{name: smooth}]", "'smooth' takes the params [alpha]"),
        ("mamba2", "[{name: smooth, params: {alpha: 1.5}}]", "alpha is 1.5; it must be from 0 to 1"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(
    tmp_path: Path, model: str, transforms: str, message: str
) -> None:
    path = recipe_file(tmp_path, "- {match: [layers.*.in_proj.weight], scheme: row}", transforms=transforms)
    with pytest.raises(RecipeError) as caught:
        plan_of(path, model)
    assert message in str(caught.value)


@pytest.mark.parametrize("recipe", [name for name in shipped_recipes() if load_recipe(name).refuses])
def test_a_recipe_says_why_it_does_not_fit(recipe: str) -> None:
    reasons = load_recipe(recipe).refuses
    for mixer, reason in reasons.items():
        with pytest.raises(RecipeError) as caught:
            plan_of(recipe, WIDE[mixer])
        assert f"{recipe!r} does not fit" in str(caught.value)
        assert reason in str(caught.value)


def test_quamba2_refuses_mamba1() -> None:
    with pytest.raises(RecipeError, match="Mamba-1 has no heads; use quamba-w8a8"):
        plan_of("quamba2-w8a8", "falcon_mamba")


def test_a_kept_pattern_must_match() -> None:
    with pytest.raises(RecipeError, match=r"the pattern 'layers\.\*\.q' matches no site"):
        plan_of("quamba2-w8a8+keep=layers.*.q", "mamba2")
