"""A local Ray cluster of two workers does what this process does: rows, statistics in shards, a killed worker."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.worker_tasks import killed_at_first, refused, squared

import ssmquant
from ssmquant.calibrate import calibrate
from ssmquant.data import builtin_model
from ssmquant.errors import InputError, RecipeError
from ssmquant.report.cluster import Cluster
from ssmquant.report.compare import Calibration, compare
from ssmquant.report.sharing import SharedStatistics
from ssmquant.report.timing import Workload


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"'ray'.*pip install 'ssmquant\[ray\]'"):
        Cluster("local")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        # Workers start with this process's environment: its path, and a cache of their own.
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("SSMQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield Cluster("local")
        ray.shutdown()


def test_tasks_run_and_fail_as_here(cluster: Cluster) -> None:
    heard: list[tuple[int, int]] = []
    found = dict(cluster.map(squared, [3, 1, 2], lambda _, done, total: heard.append((done, total))))
    assert found == {3: 9, 1: 1, 2: 4}
    assert heard == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(RecipeError, match="no recipe r4x"):
        list(cluster.map(refused, ["r4x"], None))


def test_the_task_of_a_killed_worker_is_done_again(cluster: Cluster, tmp_path: Path) -> None:
    found = dict(cluster.map(functools.partial(killed_at_first, tmp_path), [1, 2, 3], None))
    assert found == {number: (number, 1) for number in (1, 2, 3)}
    assert (tmp_path / "2").read_text().count("begun") == 2


def test_statistics_from_the_cluster_are_the_same_bits(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.inner == 2
    shell, needs = (
        ssmquant.load(builtin_model()).shell,
        {"layers.0.hidden": ("hessian",), "layers.1.x": ("absmax",)},
    )
    windows = torch.randint(0, 1000, (3, 16), generator=torch.Generator().manual_seed(0))
    found = SharedStatistics(cluster, tmp_path)(shell, windows, needs).to_tensors()
    expected = calibrate(shell, windows, needs).to_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_rows_from_the_cluster_are_those_from_here(cluster: Cluster) -> None:
    """Two recipes on two CPUs, each with statistics in shards: tasks that wait for tasks must not wait for ever."""
    model = ssmquant.load(builtin_model())
    domains = {"en": torch.randint(0, 1000, (2, 12), generator=torch.Generator().manual_seed(1))}
    recipes = ["quamba2-w8a8", "w8a8-naive"]
    calibration, workload = Calibration(samples=2, seqlen=16), Workload(prompt=4, steps=1, repetitions=1)
    there, here = (
        compare(model, recipes, domains, calibration, workload=workload, **options)
        for options in ({"executor": cluster}, {})
    )
    assert [row.scores.to_json() for row in there.rows] == [row.scores.to_json() for row in here.rows]
    assert all(row.calibration_s > 0 for row in there.rows)
