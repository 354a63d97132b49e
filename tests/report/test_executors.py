"""Tasks here and in several processes: the same results, their own errors, and nothing lost with a killed worker."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from tests.worker_tasks import always_killed, killed_at_first, refused, squared

from ssmquant.errors import InputError, RecipeError, SsmquantError
from ssmquant.report.executors import ATTEMPTS, Executor, Processes, Serial


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=["serial", "processes"])
def test_every_item_has_its_result_and_progress_is_heard(executor: Executor) -> None:
    heard: list[str] = []
    found = dict(executor.map(squared, [3, 1, 2], lambda what, *_: heard.append(what)))
    assert found == {3: 9, 1: 1, 2: 4}
    assert sorted(heard) == ["square 1", "square 2", "square 3"]
    assert list(executor.map(squared, [], None)) == []


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=["serial", "processes"])
def test_a_task_that_fails_ends_the_run_with_its_own_error(executor: Executor) -> None:
    with pytest.raises(RecipeError, match="no recipe r4x") as caught:
        list(executor.map(refused, ["r4x"], None))
    if isinstance(executor, Processes):
        assert "in refused" in caught.value.__notes__[0]  # where it was, which the pipe does not carry


def test_the_task_of_a_killed_worker_is_done_again_and_nothing_else_is(tmp_path: Path) -> None:
    task = functools.partial(killed_at_first, tmp_path)
    found = dict(Processes(2).map(task, [1, 2, 3], None))
    assert found == {number: (number, 1) for number in (1, 2, 3)}
    begun = {path.name: path.read_text().count("begun") for path in tmp_path.iterdir()}
    assert begun == {"1": 1, "2": 2, "3": 1}


def test_a_task_that_loses_every_worker_is_given_up() -> None:
    with pytest.raises(SsmquantError, match=rf"^7: .*{ATTEMPTS} times .*exit status -9.*fewer jobs"):
        list(Processes(1).map(always_killed, [7], None))


def test_threads_are_shared_out() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert (Serial().threads, Processes(2).threads, Processes(9).threads) == (5, 2, 1)
    finally:
        torch.set_num_threads(threads)


def test_no_processes_are_refused() -> None:
    with pytest.raises(InputError, match="0 processes"):
        Processes(0)
