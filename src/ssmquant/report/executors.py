"""Where independent tasks run: one after another here, or in several processes of this machine.

    executor: Executor = Processes(4)
    for item, result in executor.map(task, items, progress):
        ...

Another executor, over machines, is in `cluster`. All do the same: every task is done, once as far as anyone can see,
results come as they are finished, and the first task that fails ends the run with its own error.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from ssmquant.calibrate import Progress
from ssmquant.errors import InputError, SsmquantError

__all__ = ["ATTEMPTS", "Executor", "Processes", "Serial", "Task"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Task = Callable[[Item, Progress | None], Result]
"""From an item to its result, reporting its progress; it may run more than once if the first worker is lost."""

ATTEMPTS = 3
"""Workers that a task may lose before it is given up: one that needs too much memory loses every worker."""


class Executor(Protocol):
    """Runs tasks."""

    @property
    def threads(self) -> int:
        """Threads of PyTorch that each task has."""

    @property
    def inner(self) -> int:
        """Tasks that a running task may start at once by `map` of the same executor; 1 where it may start none."""

    def map(
        self, task: Task[Item, Result], items: Sequence[Item], progress: Progress | None
    ) -> Iterator[tuple[Item, Result]]:
        """Yield each item with its result, in the order in which they are finished.

        Args:
            task: what to do; executors other than `Serial` pickle it, the items and the results.
            items: what to do it with, in the order in which they are begun.
            progress: what tasks report to.

        Raises:
            SsmquantError: a task has lost its worker every time that it was tried.
        """


class Serial:
    """One task after another, in this process."""

    inner = 1

    @property
    def threads(self) -> int:
        """Threads of this process."""
        return torch.get_num_threads()

    def map(
        self, task: Task[Item, Result], items: Sequence[Item], progress: Progress | None
    ) -> Iterator[tuple[Item, Result]]:
        """See `Executor.map`."""
        for item in items:
            yield item, task(item, progress)


class _Worker(NamedTuple):
    process: BaseProcess
    item: Any
    attempt: int


class Processes:
    """Several tasks at a time, each in a process of its own, so that what one uses or breaks is gone with it.

    A task whose process ends without a result (killed, or out of memory) is done again; the others go on. Processes are
    started afresh (not forked), so a script that uses this needs the usual ``if __name__ == "__main__":``.

    Args:
        jobs: most processes at a time; this process's threads are shared among them.

    Raises:
        InputError: jobs is below 1.
    """

    inner = 1

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise InputError(f"{jobs} processes were asked for; use 1 or more")
        self.jobs = jobs

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return max(1, torch.get_num_threads() // self.jobs)

    def map(
        self, task: Task[Item, Result], items: Sequence[Item], progress: Progress | None
    ) -> Iterator[tuple[Item, Result]]:
        """See `Executor.map`."""
        waiting = deque((item, 1) for item in items)
        running: dict[Any, _Worker] = {}  # by their pipes
        with TemporaryDirectory() as folder:
            # On disk once, and not through each worker's pipe: a task may hold a model.
            path = Path(folder) / "task"
            path.write_bytes(pickle.dumps(task))
            try:
                while waiting or running:
                    while waiting and len(running) < self.jobs:
                        pipe, worker = self._start(path, *waiting.popleft())
                        running[pipe] = worker
                    for pipe in connection.wait(list(running)):
                        kind, content = _message(pipe)
                        if kind == "progress":
                            if progress:
                                progress(*content)
                            continue
                        worker = running.pop(pipe)
                        worker.process.join()
                        match kind:
                            case "result":
                                yield worker.item, content
                            case "error":
                                raise content
                            case _:
                                waiting.appendleft(_again(worker))
            finally:
                for worker in running.values():
                    worker.process.kill()
                    worker.process.join()

    def _start(self, path: Path, item: Any, attempt: int) -> tuple[Any, _Worker]:
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(path, item, theirs, self.threads), daemon=True)
        process.start()
        theirs.close()  # or the end of the process would not be the end of the pipe
        return ours, _Worker(process, item, attempt)


def _message(pipe: Any) -> tuple[str, Any]:
    """Return what a process has sent; ("lost", None) if it has ended without a last word."""
    try:
        kind, content = pipe.recv()
        return kind, content
    except EOFError:
        return "lost", None


def _again(worker: _Worker) -> tuple[Any, int]:
    """Return what is to be done in place of a lost worker.

    Raises:
        SsmquantError: enough is enough.
    """
    if worker.attempt == ATTEMPTS:
        status = worker.process.exitcode
        raise SsmquantError(
            f"{worker.item}: its process has ended {ATTEMPTS} times without a result (last exit status {status}; "
            f"{-signal.SIGKILL} is what a system short of memory sends); use fewer jobs"
        )
    return worker.item, worker.attempt + 1


def _work(path: Path, item: Any, pipe: connection.Connection, threads: int) -> None:
    """What a process does: one task. Sends any number of ("progress", …), then ("result", …) or ("error", …)."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the process that asked is interrupted too, and ends this one
    torch.set_num_threads(threads)
    os.environ["SSMQUANT_THREADS"] = str(threads)

    def report(what: str, done: int, total: int) -> None:
        pipe.send(("progress", (what, done, total)))

    with suppress(BrokenPipeError):  # nobody waits for this any more
        try:
            task: Task[Any, Any] = pickle.loads(path.read_bytes())
            last = ("result", task(item, report))
        except BrokenPipeError:
            raise
        except Exception as error:
            error.add_note(f"in the process of {item}:\n{traceback.format_exc()}")
            last = ("error", error)
        pipe.send(last)
