from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from ssmquant.errors import RecipeError
from ssmquant.quantizers import QUANTIZERS
from ssmquant.recipe import Recipe, load_recipe, shipped_recipes
from ssmquant.scheme import TensorScheme
from ssmquant.transforms import TRANSFORMS

GOOD = """
    description: a recipe of the tests
    source: none
    options:
      state: {help: the state, choices: [small, large], default: small}
    transforms:
      - {name: fuse_norm, when: {state: small}}
    schemes:
      row: {bits: 8, granularity: per-channel}
    rules:
      - {match: [layers.*.in_proj.weight], scheme: row}
"""


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(dedent(text), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_say_what_they_are(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert "\n" not in recipe.description
    assert recipe.source
    assert all(option.help for option in recipe.options.values())
    assert all(step.name in TRANSFORMS for step in recipe.transforms)
    assert all(rule.quantizer in QUANTIZERS for rule in recipe.rules)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_choice_of_every_option_changes_what_applies(name: str) -> None:
    recipe = load_recipe(name)

    def applying(word: str) -> list[object]:
        chosen = load_recipe(f"{name}+{word}")
        steps = (*chosen.rules, *chosen.transforms)
        kinds = ("mamba1", "mamba2")
        applied = [step for step in steps if any(step.applies(chosen.settings, kind) for kind in kinds)]
        return [*applied, chosen.schemes]

    for option, choices in ((key, option.choices) for key, option in recipe.options.items()):
        found = [applying(f"{option}={choice}") for choice in choices or ()]
        assert all(a != b for index, a in enumerate(found) for b in found[:index]), option


def test_the_names_of_the_documentation_are_there() -> None:
    assert {"fp16", "w8a8-naive", "w8a8-dynamic", "quamba-w8a8", "quamba2-w8a8"} <= shipped_recipes().keys()


def test_options_are_chosen_in_the_reference() -> None:
    recipe = load_recipe("quamba2-w8a8+ssm_state=float16+keep=layers.*.y+keep=lm_head.*")
    assert recipe.settings["ssm_state"] == "float16"
    assert recipe.settings["embedding"] == "int8"  # by default
    assert recipe.keep == ("layers.*.y", "lm_head.*")
    assert recipe.reference == "quamba2-w8a8+ssm_state=float16+keep=layers.*.y+keep=lm_head.*"
    assert load_recipe(recipe.reference) == recipe
    assert load_recipe(recipe) is recipe


def test_a_file_is_a_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert recipe.schemes["row"] == TensorScheme(granularity="per-channel")
    assert recipe.rules[0].match == ("layers.*.in_proj.weight",)
    assert load_recipe(f"{path}+state=large").settings == {"state": "large"}


def test_a_path_may_hold_a_plus(tmp_path: Path) -> None:
    folder = tmp_path / "c++"
    folder.mkdir()
    path = written(folder, GOOD, "a+b.yaml")
    assert load_recipe(path).name == "a+b"
    assert load_recipe(str(path)).name == "a+b"
    assert load_recipe(f"{path}+state=large").settings == {"state": "large"}


def test_a_reference_may_be_longer_than_a_file_name() -> None:
    keep = [f"layers.{layer}.in_proj.weight" for layer in range(64)]
    assert load_recipe("+keep=".join(["fp16", *keep])).keep == tuple(keep)


def test_conditions_decide_what_applies(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(
            tmp_path,
            GOOD + "      - {match: [layers.*.x], scheme: row, mixers: [mamba2], when: {state: large}}\n",
        )
    )
    (step,), (always, conditional) = recipe.transforms, recipe.rules
    assert step.applies({"state": "small"}, "mamba1")
    assert not step.applies({"state": "large"}, "mamba1")
    assert always.applies({"state": "large"}, "mamba1")
    assert conditional.applies({"state": "large"}, "mamba2")
    assert not conditional.applies({"state": "large"}, "mamba1")
    assert not conditional.applies({"state": "small"}, "mamba2")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("quamba-w8a9", "no recipe 'quamba-w8a9', and no such file; did you mean 'quamba-w8a8'?"),
        ("nothing-like-it", "and no such file; known: "),
        ("quamba-w8a8+ssm_stat=int8", "no option 'ssm_stat'; did you mean 'ssm_state'?"),
        ("quamba-w8a8+kep=layers.*", "no option 'kep'; did you mean 'keep'?"),
        ("quamba-w8a8+ssm_state=int4", "ssm_state='int4' is none of the choices; did you mean 'int8'?"),
        ("quamba-w8a8+ssm_state", "options are written option=value, found 'ssm_state'"),
        ("quamba-w8a8+", "options are written option=value, found ''"),
        ("fp16+ssm_state=int8", "no option 'ssm_state'"),
        ("", "no recipe ''"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(reference: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(reference)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "messages"),
    [
        ("transforms:", "transform:", ["transform: ", "did you mean 'transforms'?"]),
        ("match: ", "matches: ", ["rules.0.matches", "did you mean 'match'?"]),
        ("granularity:", "granularty:", ["schemes.row.granularty", "did you mean 'granularity'?"]),
        ("default: small", "default: middle", ["default 'middle' is none of the choices"]),
        ("scheme: row", "scheme: rows", ["names the scheme 'rows'; did you mean 'row'?"]),
        ("when: {state: small}", "when: {state: tiny}", ["state=tiny, which is no option"]),
        ("when: {state: small}", "when: {stat: small}", ["stat=small, which is no option"]),
        ("when: {state: small}", "mixers: [mamba3]", ["transforms.0.mixers.0", "'mamba1' or 'mamba2'"]),
        ("bits: 8", "bits: 9", ["schemes.row", "at most 8 bits"]),
        ("bits: 8", "bits: many", ["schemes.row.bits", "integer"]),
        ("per-channel", "per-chanel", ["schemes.row.granularity", "per-channel"]),
        ("choices: [small, large]", "choices: [small]", ["options.state.choices", "at least 2"]),
        ("match: [layers.*.in_proj.weight]", "match: []", ["rules.0.match", "at least 1"]),
        ("description: a recipe of the tests", "# nothing", ["description: Field required"]),
        ("source: none", "source: none\n    chosen: {state: tiny}", ["state=tiny, which is no option"]),
        (
            "source: none",
            "source: none\n    refuses: {mamba3: no}",
            ["refuses.mamba3", "'mamba1' or 'mamba2'"],
        ),
        ("source: none", "source: none\n    extnds: fp16", ["extnds", "did you mean 'extends'?"]),
        ("source: none", "source: none\n    extends: fp17", ["extends 'fp17'", "did you mean 'fp16'?"]),
        (
            "source: none",
            "source: none\n    extends: [fp16]",
            ["extends ['fp16']", "no other shipped recipe"],
        ),
        ("source: none", "source: none\n    extends: mine", ["extends 'mine'", "no other shipped recipe"]),
    ],
)
def test_faults_of_a_file_are_told_with_their_place(
    tmp_path: Path, before: str, after: str, messages: list[str]
) -> None:
    assert before in GOOD
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "mine" in str(caught.value)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("text", ["rules: [unclosed", "a: b: c", "\tindented: by a tab", "key: \x00"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.yaml: not a YAML text in UTF-8"):
        load_recipe(path)


def test_what_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(dedent(GOOD).encode().replace(b"a recipe", b"ein Rezept f\xfcr"))
    with pytest.raises(RecipeError, match=r"mine\.yaml: not a YAML text in UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["", "just words", "[a, list]", "42"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="must be a mapping of name, description, source"):
        load_recipe(path)


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """One of the two would be lost without a word."""
    with pytest.raises(RecipeError, match="'rules' is given twice"):
        load_recipe(written(tmp_path, GOOD + "    rules: []\n"))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(tmp_path)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a YAML text"):
        load_recipe(written(tmp_path, "description: !!python/object/apply:os.getcwd []"))


def test_an_extension_goes_on_where_the_other_ends(tmp_path: Path) -> None:
    text = """
        extends: quamba-w8a8
        description: more of it
        options:
          gain: {help: of nothing, choices: [low, high], default: low}
        schemes:
          tensor: {bits: 8, granularity: per-tensor, range: mse}
          extra: {bits: 8}
        rules:
          - {match: [layers.*.y], scheme: extra}
    """
    base, recipe = load_recipe("quamba-w8a8"), load_recipe(written(tmp_path, text))
    assert recipe.name == "mine"
    assert recipe.description == "more of it"
    assert recipe.source == base.source
    assert recipe.rules[:-1] == base.rules
    assert recipe.rules[-1].scheme == "extra"
    assert recipe.transforms == base.transforms
    assert recipe.options.keys() == base.options.keys() | {"gain"}
    assert recipe.schemes == {
        **base.schemes,
        "tensor": TensorScheme(range="mse"),
        "extra": TensorScheme(),
    }


def test_a_recipe_is_the_same_through_json() -> None:
    recipe = load_recipe("quamba2-w8a8+ssm_state=float32")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
