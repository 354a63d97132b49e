"""`extends`: a recipe that goes on where another ends, over several steps; what is joined, what is replaced."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from ssmquant.errors import RecipeError
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.scheme import TensorScheme


def extension(folder: Path, text: str, name: str = "mine.yaml") -> Recipe:
    path = folder / name
    path.write_text(dedent(text), encoding="utf-8")
    return load_recipe(path)


def test_a_chain_of_three(tmp_path: Path) -> None:
    """mine → quamba2-w4a16 → gptq-w4a16."""
    first, second = load_recipe("gptq-w4a16"), load_recipe("quamba2-w4a16")
    mine = extension(
        tmp_path,
        """
        extends: quamba2-w4a16
        rules:
          - {match: [layers.0.in_proj.weight], scheme: int8}
        """,
    )
    assert first.transforms == ()
    assert [step.name for step in second.transforms] == ["fuse_norm", "hadamard_out"]
    assert second.rules == first.rules
    assert mine.rules[:-1] == first.rules
    assert mine.rules[-1].match == ("layers.0.in_proj.weight",)
    assert mine.transforms == second.transforms
    assert mine.options == first.options
    assert mine.description == second.description != first.description
    assert mine.name == "mine"


def test_lists_go_on_mappings_are_joined_and_the_rest_is_replaced(tmp_path: Path) -> None:
    base = load_recipe("quamba2-w4a8")
    mine = extension(
        tmp_path,
        """
        extends: quamba2-w4a8
        source: nowhere
        refuses: {mamba2: not today}
        options:
          quantizer: {help: the other way round, choices: [gptq, rtn], default: rtn}
        schemes:
          group: {bits: 4, granularity: per-group, group_size: 64}
        """,
    )
    assert (mine.source, mine.description) == ("nowhere", base.description)
    assert mine.refuses == {**base.refuses, "mamba2": "not today"}
    assert list(mine.options) == list(base.options)
    assert mine.options["quantizer"].default == "rtn"
    # A scheme is replaced whole, and the base's rules mean the new one.
    assert mine.schemes == {
        **base.schemes,
        "group": TensorScheme(bits=4, granularity="per-group", group_size=64),
    }
    assert mine.rules == load_recipe("quamba2-w4a8+quantizer=rtn").rules  # $quantizer follows the default


def test_own_rules_win_over_those_of_the_base() -> None:
    base, recipe = load_recipe("quamba2-w8a8"), load_recipe("quamba2-w4a8")
    assert recipe.rules[: len(base.rules)] == base.rules
    projections, *heads = recipe.rules[len(base.rules) :]
    assert projections.match == ("layers.*.in_proj.weight", "layers.*.out_proj.weight")
    assert (projections.scheme, projections.quantizer) == ("group", "gptq")
    assert all("int4" in rule.when.values() for rule in heads)


def test_the_name_is_that_of_the_file_or_its_own(tmp_path: Path) -> None:
    assert extension(tmp_path, "extends: fp16").name == "mine"
    assert extension(tmp_path, "extends: fp16\nname: other").name == "other"


def test_options_of_the_base_are_asked_for_by_the_extension(tmp_path: Path) -> None:
    extension(tmp_path, "extends: quamba2-w4a8")
    recipe = load_recipe(f"{tmp_path / 'mine.yaml'}+ssm_state=float16+quantizer=rtn")
    assert recipe.settings["ssm_state"] == "float16"
    assert recipe.settings["quantizer"] == "rtn"


def test_a_file_may_have_the_name_of_the_recipe_that_it_extends(tmp_path: Path) -> None:
    mine = extension(tmp_path, "extends: fp16\ndescription: mine", name="fp16.yaml")
    assert mine.description == "mine"
    assert mine.rules == load_recipe("fp16").rules


def test_a_shipped_recipe_cannot_extend_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "round.yaml"
    path.write_text("extends: round\n", encoding="utf-8")
    monkeypatch.setattr("ssmquant.recipe.shipped_recipes", lambda: {"round": path})
    with pytest.raises(RecipeError, match=r"extends 'round', which is no other shipped recipe; did you mean"):
        load_recipe("round")


@pytest.mark.parametrize("base", ["quamba2-w4a9", "./mine.yaml", "quamba2-w4a8+quantizer=rtn", "7", "{a: b}"])
def test_only_a_shipped_recipe_can_be_extended(tmp_path: Path, base: str) -> None:
    with pytest.raises(RecipeError, match=r"which is no other shipped recipe; (did you mean|known: )"):
        extension(tmp_path, f"extends: {base}")


def test_what_the_extension_makes_impossible_is_told(tmp_path: Path) -> None:
    """A rule of the base asks for an option by a value that the extension has taken away."""
    with pytest.raises(RecipeError, match=r"recipe .*mine\.yaml: .*head=int8, which is no option"):
        extension(
            tmp_path,
            """
            extends: quamba2-w4a8
            options:
              head: {help: without the others, choices: [float16, int4], default: int4}
            """,
        )
