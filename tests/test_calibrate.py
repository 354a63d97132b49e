from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import float_model, random_ids, saved
from torch import Tensor

import ssmquant
from ssmquant import calibrate as module
from ssmquant.calibrate import cache_folder, calibrate, calibrate_cached
from ssmquant.errors import DataError, SsmquantError
from ssmquant.families import Shell
from ssmquant.ops.registry import use_backend
from ssmquant.runtime.engine import Engine
from ssmquant.statistics import Needs, Statistics

NAMES = ["mamba", "mamba2-two-groups"]
NEEDS: Needs = {
    "layers.0.x": ("absmax", "histogram"),
    "layers.0.hidden": ("hessian",),
    "layers.1.state": ("absmax",),
    "layers.2.y": ("absmax", "histogram", "hessian"),
    "lm_head.input": ("absmax",),
}
WINDOWS = random_ids(6, 70)


def same(a: Statistics, b: Statistics) -> bool:
    x, y = a.to_tensors(), b.to_tensors()
    return x.keys() == y.keys() and all(torch.equal(tensor, y[name]) for name, tensor in x.items())


@cache
def whole(name: str) -> Statistics:
    return calibrate(float_model(name).shell, WINDOWS, NEEDS)


@cache
def single(name: str, window: int) -> Statistics:
    return calibrate(float_model(name).shell, WINDOWS[window : window + 1], NEEDS)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)  # the first example runs the model
@given(order=st.permutations(range(len(WINDOWS))), cut=st.integers(1, len(WINDOWS) - 1))
def test_shards_in_any_order_are_the_whole_bit_for_bit(name: str, order: list[int], cut: int) -> None:
    halves = [
        reduce(Statistics.merge, (single(name, window) for window in part))
        for part in (order[:cut], order[cut:])
    ]
    assert same(halves[0].merge(halves[1]), whole(name))


def test_a_shard_of_several_windows_is_that_of_each() -> None:
    shard = calibrate(float_model("mamba").shell, WINDOWS[2:5], NEEDS)
    assert same(shard, reduce(Statistics.merge, (single("mamba", window) for window in (4, 2, 3))))


def test_other_text_gives_other_statistics() -> None:
    assert not same(single("mamba", 0), single("mamba", 1))


def test_statistics_of_different_needs_are_not_merged() -> None:
    other = calibrate(float_model("mamba").shell, WINDOWS[:1], {"layers.0.x": ("absmax",)})
    with pytest.raises(SsmquantError, match="different sites or observers"):
        whole("mamba").merge(other)


@pytest.mark.parametrize("name", NAMES)
def test_maxima_are_those_of_the_tensors_that_pass(name: str) -> None:
    shell = float_model(name).shell
    seen: list[Tensor] = []
    handle = shell.blocks[1].mixer.site("y").register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with use_backend("reference"):  # as calibration does
        float_model(name).logits(WINDOWS)
    handle.remove()
    (y,) = seen
    found = calibrate(shell, WINDOWS, {"layers.1.y": ("absmax",)}).absmax("layers.1.y")
    assert torch.equal(found, y.flatten(0, -2).abs().amax(dim=0))


def test_looking_at_the_state_changes_nothing() -> None:
    model = float_model("mamba2-two-groups")
    seen: list[Tensor] = []
    handle = model.shell.head.input.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    calibrate(model.shell, WINDOWS[:1], {"layers.0.state": ("absmax",), "layers.2.state": ("absmax",)})
    calibrate(model.shell, WINDOWS[:1], {"layers.0.x": ("absmax",)})
    handle.remove()
    assert torch.equal(seen[0], seen[1])


def test_state_maxima_are_of_each_row_and_d_state() -> None:
    absmax = whole("mamba2-two-groups").absmax("layers.1.state")
    assert absmax.shape == (12 * 8, 16)
    assert bool((absmax > 0).all())
    _, state = Engine(float_model("mamba2-two-groups").shell).prefill([WINDOWS[0, :64].tolist()])
    assert bool((state.groups[0].layers[1].ssm[0].flatten(0, 1).abs() <= absmax * 1.0001).all())


def hooks(shell: Shell) -> int:
    return sum(len(site._forward_hooks) for _, site in shell.activations())


def test_hooks_are_gone_afterwards() -> None:
    shell = float_model("mamba").shell
    calibrate(shell, WINDOWS[:1], NEEDS)
    assert hooks(shell) == 0

    def fail(what: str, done: int, total: int) -> None:
        assert hooks(shell) == len(NEEDS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(shell, WINDOWS[:1], NEEDS, fail)
    assert hooks(shell) == 0


def test_progress_is_told_after_each_window() -> None:
    calls: list[tuple[str, int, int]] = []
    calibrate(float_model("mamba").shell, WINDOWS[:3], NEEDS, lambda *call: calls.append(call))
    assert calls == [("calibrate", 1, 3), ("calibrate", 2, 3), ("calibrate", 3, 3)]


def test_no_window_is_refused() -> None:
    with pytest.raises(DataError, match="at least one sequence"):
        calibrate(float_model("mamba").shell, WINDOWS[:0], NEEDS)


def test_a_model_out_of_range_is_refused() -> None:
    statistics = Statistics.empty({"layers.0.x": ("absmax",)})
    for observer in statistics.sites["layers.0.x"].values():
        observer.update(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(SsmquantError, match=r"layers\.0\.x.* NaN or infinity"):
        statistics.absmax("layers.0.x")


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Needs]:
    """What was gathered by running the model, each time that it was run."""
    runs: list[Needs] = []

    def counted(shell: Shell, windows: Tensor, needs: Needs, progress: object) -> Statistics:
        runs.append(needs)
        return calibrate(shell, windows, needs)

    monkeypatch.setattr(module, "calibrate", counted)
    return runs


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "calibration").iterdir())


def test_a_second_time_comes_from_the_cache(tmp_path: Path, gathered: list[Needs]) -> None:
    shell = float_model("mamba2-two-groups").shell
    first = calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path)
    second = calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path)
    assert gathered == [NEEDS]
    assert same(first, whole("mamba2-two-groups"))
    assert same(second, first)


def test_only_what_is_missing_is_gathered(tmp_path: Path, gathered: list[Needs]) -> None:
    shell = float_model("mamba").shell
    calibrate_cached(shell, WINDOWS, {"layers.0.x": ("absmax",)}, cache=tmp_path)
    found = calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path)
    assert gathered == [{"layers.0.x": ("absmax",)}, {**NEEDS, "layers.0.x": ("histogram",)}]
    assert same(found, whole("mamba"))
    assert same(calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path), whole("mamba"))
    assert len(gathered) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"not a cache entry"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["cut short", "foreign", "empty"],
)
def test_a_damaged_entry_is_gathered_again(
    tmp_path: Path, gathered: list[Needs], damage: Callable[[Path], None]
) -> None:
    shell = float_model("mamba").shell
    calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path)
    (entry,) = entries(tmp_path)
    damage(entry)
    assert same(calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path), whole("mamba"))
    assert len(gathered) == 2
    calibrate_cached(shell, WINDOWS, NEEDS, cache=tmp_path)
    assert len(gathered) == 2  # and the entry is whole again
    assert entries(tmp_path) == [entry]  # with no partial file beside it


def altered(tmp_path: Path, key: str, value: object) -> ssmquant.Model:
    """Return the model of a config with another value; its tensors are the same."""
    folder = shutil.copytree(saved("mamba2-two-groups"), tmp_path / key)
    config = json.loads((folder / "config.json").read_text())
    assert config[key] != value
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    return ssmquant.load(folder)


def test_entries_are_of_one_model_and_one_text(tmp_path: Path, gathered: list[Needs]) -> None:
    shell, needs = float_model("mamba2-two-groups").shell, {"layers.0.x": ("absmax",)}
    calibrate_cached(shell, WINDOWS, needs, cache=tmp_path)
    calibrate_cached(shell, WINDOWS[:, :-1], needs, cache=tmp_path)
    calibrate_cached(shell, WINDOWS.flip(0), needs, cache=tmp_path)
    calibrate_cached(float_model("mamba2").shell, WINDOWS, needs, cache=tmp_path)
    assert len(gathered) == len(entries(tmp_path)) == 4


@pytest.mark.parametrize(("key", "value"), [("time_step_limit", [0.0, 0.1]), ("layer_norm_epsilon", 0.1)])
def test_constants_that_are_no_tensors_count(
    tmp_path: Path, gathered: list[Needs], key: str, value: object
) -> None:
    needs = {"layers.0.dt": ("absmax",), "layers.1.y": ("absmax",)}
    first = calibrate_cached(float_model("mamba2-two-groups").shell, WINDOWS, needs, cache=tmp_path)
    second = calibrate_cached(altered(tmp_path, key, value).shell, WINDOWS, needs, cache=tmp_path)
    assert len(gathered) == 2
    assert not same(first, second)


def test_the_online_transform_counts(tmp_path: Path, gathered: list[Needs]) -> None:
    shell, needs = ssmquant.load(saved("mamba")).shell, {"layers.1.y": ("absmax",)}
    calibrate_cached(shell, WINDOWS, needs, cache=tmp_path)
    for block in shell.blocks:
        block.mixer.hadamard = True
    calibrate_cached(shell, WINDOWS, needs, cache=tmp_path)
    assert len(gathered) == 2


def test_a_cache_that_cannot_be_written_loses_nothing(tmp_path: Path, gathered: list[Needs]) -> None:
    place = tmp_path / "file"
    place.write_text("in the way of the folder")
    found = calibrate_cached(float_model("mamba").shell, WINDOWS, NEEDS, cache=place)
    assert same(found, whole("mamba"))


def test_without_a_cache_nothing_is_kept(tmp_path: Path, gathered: list[Needs]) -> None:
    for _ in range(2):
        assert same(calibrate_cached(float_model("mamba").shell, WINDOWS, NEEDS, cache=None), whole("mamba"))
    assert len(gathered) == 2


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"
    monkeypatch.delenv("SSMQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "all"))
    assert cache_folder() == tmp_path / "all" / "ssmquant"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ssmquant"


def test_statistics_are_stored_whole() -> None:
    stored = {name: tensor.clone() for name, tensor in whole("mamba2-two-groups").to_tensors().items()}
    assert same(Statistics.from_tensors(stored), whole("mamba2-two-groups"))


def test_a_site_that_saw_nothing_has_no_maxima() -> None:
    with pytest.raises(SsmquantError, match=r"layers\.0\.x was never observed"):
        Statistics.empty(NEEDS).absmax("layers.0.x")
