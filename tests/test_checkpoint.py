"""Quantised folders: written whole, read back bit for bit in other processes, damage told with its place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import FOLDER, fitting, float_model, quantised, random_ids, saved

import ssmquant
from ssmquant import checkpoint
from ssmquant.errors import CheckpointError, ModelError
from ssmquant.files import digest
from ssmquant.planning import Plan
from ssmquant.runtime.engine import Engine

IDS = random_ids(2, 40, seed=3)
#: Besides every recipe: other families, biases, an untied head, every kind of state.
OTHERS = [
    ("quamba-w8a8", "falcon_mamba-untied-biased"),
    ("w8a8-naive", "mamba"),
    ("quamba2-w8a8", "mamba2-untied-biased"),
    ("quamba2-w8a8+ssm_state=float16+head=float16", "mamba2-two-groups"),
    ("quamba2-w8a8+ssm_state=float32", "mamba2-two-groups"),
]
READ = """
import json, sys
import torch, ssmquant
from ssmquant.files import digest
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[1]))
found = {}
for folder in sys.argv[2:]:
    ours = ssmquant.load(folder).logits(ids)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    found[folder] = [digest(ours), digest(theirs)]
print(json.dumps(found))
"""


@cache
def written(recipe: str, name: str) -> Path:
    """Return the folder of a tiny quantised model; shared by all tests, none may change it."""
    path = Path(FOLDER.name) / "quantised" / f"{name}-{recipe}"
    path.parent.mkdir(exist_ok=True)
    quantised(name, recipe).save(path)
    return path


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )


@cache
def read_elsewhere() -> dict[str, list[str]]:
    """Return what another process finds in every folder: digests of our logits and of transformers'."""
    folders = [str(written(*case)) for case in [*fitting(), *OTHERS]]
    found: dict[str, list[str]] = json.loads(run(READ, json.dumps(IDS.tolist()), *folders).stdout)
    return found


@pytest.mark.parametrize(("recipe", "name"), [*fitting(), *OTHERS])
def test_another_process_has_the_same_logits(recipe: str, name: str) -> None:
    """Through transformers the stages run one by one, whose sums of floats are rounded apart from an engine's."""
    model = quantised(name, recipe)
    ours, theirs = read_elsewhere()[str(written(recipe, name))]
    assert ours == digest(model.logits(IDS))
    assert theirs == digest(Engine(model.shell).logits(IDS))


@pytest.mark.parametrize(("recipe", "name"), [*fitting(), *OTHERS])
def test_the_file_holds_what_the_plan_says(recipe: str, name: str) -> None:
    folder = written(recipe, name)
    tensors, plan = load_file(folder / "model.safetensors"), quantised(name, recipe).plan
    assert plan is not None
    entry = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert entry["quant_method"] == "ssmquant"
    assert entry["format_version"] == 1
    assert entry["source_model"] == name
    assert Plan.from_json(entry["plan"], float_model(name).config) == plan
    paths = {id(module): path for path, module in quantised(name, recipe).module.named_modules()}
    kept = {f"{paths[id(weight)]}.weight" for _, weight in quantised(name, recipe).shell.weights()}
    floats = {
        tensor.numel() for key, tensor in tensors.items() if tensor.is_floating_point() and key not in kept
    }
    for site, weight in quantised(name, recipe).shell.weights():
        path, numel = paths[id(weight)], weight.shape[0] * weight.shape[1]
        if site not in plan.schemes or plan.schemes[site].is_float:
            assert f"{path}.codes" not in tensors
            continue
        if plan.schemes[site].bits == 8:
            assert tensors[f"{path}.codes"].dtype == torch.int8
            assert tensors[f"{path}.codes"].numel() == numel
            assert int(tensors[f"{path}.codes"].abs().max()) <= 127
        assert f"{path}.weight" not in tensors
        assert numel < 4096 or numel not in floats
    for site, module in quantised(name, recipe).shell.activations():
        assert (f"{paths[id(module)]}.scale" in tensors) == plan.activation_schemes[site].is_static_int
    assert sum(tensor.nbytes for tensor in tensors.values()) < 1.5 * plan.float_bytes()


def test_what_is_read_goes_on_as_what_was_written() -> None:
    model, loaded = (
        quantised("mamba2-two-groups", "quamba2-w8a8"),
        ssmquant.load(written("quamba2-w8a8", "mamba2-two-groups")),
    )
    assert loaded.plan == model.plan
    assert loaded.provenance == model.provenance
    assert loaded.family == "mamba2"
    text = loaded.tokenizer.decode(IDS[0].tolist())  # type: ignore[union-attr]
    assert loaded.generate(text, max_new_tokens=12) == model.generate(text, max_new_tokens=12)


def test_saving_what_was_read_writes_the_same_files(tmp_path: Path) -> None:
    folder = written("quamba2-w8a8", "mamba2-two-groups")
    ssmquant.load(folder).save(tmp_path / "again")
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}
    for path in folder.iterdir():
        if path.name != "config.json":  # which names the folder that the model came from
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a quantised folder, to be damaged."""
    return shutil.copytree(written("quamba2-w8a8", "mamba2-two-groups"), tmp_path / "out")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


CODES = "backbone.layers.1.mixer.in_proj.codes"


def test_a_folder_as_it_was_saved_is_verified(folder: Path) -> None:
    found = ssmquant.verify(folder)
    assert found.ok
    assert found.lines == [
        f"{len(load_file(folder / 'model.safetensors'))} tensors as saved",
        "golden logits bit for bit",
    ]


def test_one_changed_bit_is_found_and_named(folder: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[CODES][3, 5] ^= 1

    edit_tensors(folder, flip)
    found = ssmquant.verify(folder)
    assert not found.ok
    assert found.lines[0].startswith("1 of ")
    assert found.lines[1].startswith(f"{CODES}: differs")


def test_a_changed_constant_is_found(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(layer_norm_epsilon=1e-3))
    found = ssmquant.verify(folder)
    assert not found.ok
    assert "golden logits differ in the same environment: config.json or the code" in found.lines[-1]


def test_logits_of_another_machine_are_compared_by_value(folder: Path) -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        content["golden"]["environment"]["machine"] = "another"
        content["golden"]["logits"] = "0" * 32

    edit_json(folder / "integrity.json", elsewhere)
    found = ssmquant.verify(folder)
    assert found.ok
    assert "golden logits agree up to float sums: saved under" in found.lines[-1]
    assert "another" in found.lines[-1]

    def wrong(content: dict[str, Any]) -> None:
        content["golden"]["last"][0][1] *= 1.1

    edit_json(folder / "integrity.json", wrong)
    found = ssmquant.verify(folder)
    assert not found.ok
    assert "golden logits differ: saved under" in found.lines[-1]


def test_a_foreign_folder_has_nothing_to_verify() -> None:
    with pytest.raises(CheckpointError, match="was not quantised by ssmquant"):
        ssmquant.verify(saved("mamba"))


@pytest.mark.parametrize(
    "content", ['{"tensors": 3}', "{}", '{"tensors": {}, "golden": []}', '{"tensors": {}, "golden": {}}']
)
def test_damaged_digests_are_told(folder: Path, content: str) -> None:
    (folder / "integrity.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"integrity\.json has no digests and golden logits"):
        ssmquant.verify(folder)


def test_missing_digests_are_told(folder: Path) -> None:
    (folder / "integrity.json").unlink()
    with pytest.raises(ModelError, match=r"integrity\.json cannot be read"):
        ssmquant.verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(format_version=2), "written in format version 2, this is ssmquant"),
        (lambda entry: entry.pop("format_version"), "written in format version None"),
        (lambda entry: entry.pop("plan"), "no plan for this model"),
        (lambda entry: entry.update(plan=[]), "no plan for this model"),
        (lambda entry: entry.update(plan="gone"), "no plan for this model"),
        (lambda entry: entry["plan"].pop("schemes"), "no plan for this model"),
        (lambda entry: entry["plan"].update(family="mamba"), "of the family 'mamba', the model of 'mamba2'"),
        (lambda entry: entry["plan"].update(transforms=["turn"]), "transform turn"),
        (lambda entry: entry["plan"].update(tied=False), r"lm_head\.linear\.codes: missing"),
        (
            lambda entry: entry["plan"]["sites"].update({"layers.9.x": ["s0", "", "rtn"]}),
            r"site layers\.9\.x",
        ),
        (lambda entry: entry["plan"]["sites"].update({"layers.0.x": ["s99", "", "rtn"]}), "s99"),
        (lambda entry: entry["plan"]["sites"].update({"layers.0.x": []}), "no plan for this model"),
        (lambda entry: entry["plan"]["sites"].pop("layers.0.y"), r"layers\.0\.mixer\.act\.y\.scale: found"),
        (lambda entry: entry["plan"]["schemes"].update(s0={"bits": 99}), "no plan for this model"),
        (
            lambda entry: entry["plan"]["schemes"].update(
                s0={"bits": 4, "granularity": "per-group", "group_size": 7}
            ),
            "is damaged: groups of 7 codes do not divide rows of 48",
        ),
    ],
)
def test_a_damaged_plan_is_told(folder: Path, change: Callable[[Any], object], message: str) -> None:
    edit_json(folder / "config.json", lambda config: change(config["quantization_config"]))
    with pytest.raises(CheckpointError, match=message):
        ssmquant.load(folder)


def test_a_damaged_record_of_the_calibration_harms_nothing(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["quantization_config"].update(calibration="lost"))
    assert ssmquant.load(folder).provenance == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(CODES) is None, f"{CODES}: missing"),
        (lambda tensors: tensors.update(more=torch.ones(2)), "more: found, but the model has no such tensor"),
        (
            lambda tensors: tensors.update({CODES: tensors[CODES].float()}),
            "asked torch.int8, found torch.float32",
        ),
        (lambda tensors: tensors.update({CODES: tensors[CODES][:-1]}), "in_proj.codes: asked shape"),
        (
            lambda tensors: tensors["backbone.norm_f.weight"].fill_(float("nan")),
            "norm_f.weight: asked finite values, found NaN or infinity in 48 of 48",
        ),
        (
            lambda tensors: tensors["backbone.layers.0.mixer.act.y.scale"].fill_(float("inf")),
            "act.y.scale: asked finite values",
        ),
    ],
)
def test_damaged_tensors_are_told(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        ssmquant.load(folder)
    assert "the quantised folder out is damaged" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("left", [0, 5, 1000, -50])
def test_a_file_that_is_cut_short_is_told(folder: Path, left: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"is damaged: .*model\.safetensors"):
        ssmquant.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_float_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    folder = shutil.copytree(saved("mamba2"), tmp_path / "model")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["backbone.layers.1.mixer.out_proj.weight"][4, 2] = value

    edit_tensors(folder, spoil)
    with pytest.raises(
        ModelError, match=r"layers\.1\.mixer\.out_proj\.weight: asked finite values, .* in 1 of"
    ):
        ssmquant.load(folder)


def test_an_existing_folder_is_kept_unless_forced(folder: Path) -> None:
    model = quantised("mamba2-two-groups", "w8a8-dynamic")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"already exists .*pass --force \(force=True\)"):
        model.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    model.save(folder, force=True)
    assert torch.equal(ssmquant.load(folder).logits(IDS), model.logits(IDS))
    assert [path.name for path in folder.parent.iterdir()] == ["out"]  # nothing is left beside it


@pytest.mark.parametrize("step", ["write_json", "write_tensors", "_golden"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk gone"), RuntimeError("anything")])
def test_an_interrupted_save_leaves_the_old_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Any
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupt(*_: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, step, interrupt)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        quantised("mamba2-two-groups", "w8a8-dynamic").save(folder, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(error if isinstance(error, type) else type(error)):
        quantised("mamba2-two-groups", "w8a8-dynamic").save(folder.parent / "new")
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_a_float_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a float model, which has its folder already; quantize it first"):
        float_model("mamba").save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_reads_and_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = ssmquant.load(folder)
    assert model.tokenizer is None
    assert torch.equal(model.logits(IDS), quantised("mamba2-two-groups", "quamba2-w8a8").logits(IDS))
    with pytest.raises(
        ModelError, match=r"has no tokenizer; pass tokenizer=… to load, or copy tokenizer\.json"
    ):
        model.generate("text")
    model.save(tmp_path / "again")
    assert not list((tmp_path / "again").glob("tokenizer*"))
    other = ssmquant.load(folder, tokenizer=saved("mamba"))
    assert other.tokenizer is not None
    assert other.generate(other.tokenizer.decode([5, 6, 7]), max_new_tokens=3)


def test_a_damaged_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer in .*out cannot be read: .*; pass tokenizer="):
        ssmquant.load(folder)
