"""`Cluster`: tasks over the machines of a Ray cluster (the extra ``ray``). ssmquant has to be installed on each."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

from ssmquant.calibrate import Progress
from ssmquant.errors import InputError, SsmquantError
from ssmquant.report.executors import ATTEMPTS, Task

__all__ = ["Cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cluster:
    """An executor over a Ray cluster; one CPU a task, and a task may itself start tasks.

    Ray does a task again whose worker is lost.

    Args:
        address: of a running cluster (``auto``, ``host:port``, ``ray://host:port``), or ``local`` to start one on this
            machine.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """

    threads = 1

    def __init__(self, address: str) -> None:
        self.address = address
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise InputError(
                    f"no Ray cluster at {address!r} could be joined: {error}; start one with `ray start --head`, or "
                    "use the address 'local'"
                ) from error

    @property
    def inner(self) -> int:
        """CPUs of the cluster: a task that waits for tasks of its own gives its CPU to them."""
        return max(1, int(_ray().cluster_resources().get("CPU", 1)))

    def map(
        self, task: Task[Item, Result], items: Sequence[Item], progress: Progress | None
    ) -> Iterator[tuple[Item, Result]]:
        """See `Executor.map`; progress is told of finished tasks only."""
        ray = _ray()
        shared = ray.put(task)
        remote = ray.remote(_run).options(num_cpus=1, max_retries=ATTEMPTS - 1)
        pending = {remote.remote(shared, item): item for item in items}
        try:
            while pending:
                (ready, *_), _ = ray.wait(list(pending))
                item = pending.pop(ready)
                yield item, _result(ray, ready, item)
                if progress:
                    progress("tasks", len(items) - len(pending), len(items))
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _run(task: Task[Any, Any], item: Any) -> Any:
    torch.set_num_threads(Cluster.threads)
    os.environ["SSMQUANT_THREADS"] = str(Cluster.threads)
    return task(item, None)


def _result(ray: Any, reference: Any, item: Any) -> Any:
    """Return the result of a task that has ended, or raise its own error."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise SsmquantError(
            f"{item}: its worker was lost {ATTEMPTS} times; give the cluster's machines more memory or fewer CPUs"
        ) from error


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise InputError(
            f"a Ray cluster was asked for, which needs {error.name!r}, and that is not installed; "
            "run: pip install 'ssmquant[ray]', or use jobs on this machine"
        ) from error
