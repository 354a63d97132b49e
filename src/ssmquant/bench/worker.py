"""`Worker`: a model in a process of its own, so that its memory and its threads are its own.

Its threads are set before any library starts some, and what the measured peaks are of is this one model.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import torch

from ssmquant.bench.contestant import Facts
from ssmquant.bench.memory import peak_bytes, resident_bytes
from ssmquant.bench.subjects import SubjectSpec
from ssmquant.bench.workload import Times, Workload, run_workload
from ssmquant.errors import SsmquantError

__all__ = ["Worker"]


class Worker:
    """Runs a model in a process of its own.

    Args:
        spec: which model.
        threads: of its kernels and of PyTorch.
    """

    def __init__(self, spec: SubjectSpec, threads: int) -> None:
        self.spec = spec
        self.device = spec.device
        self.threads = threads
        # Not forked: a fork takes along memory and locks of this process.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec, threads), daemon=True)
        self._theirs = theirs

    def start(self) -> Facts:
        """Start the process and load the model there.

        Raises:
            SsmquantError: what went wrong there, or that the process ended.
        """
        self._process.start()
        self._theirs.close()  # so that its end is seen here
        facts: Facts = self._answer()
        return facts

    def run(self, workload: Workload) -> Times:
        """Run and time a workload once."""
        self._connection.send(workload)
        times: Times = self._answer()
        return times

    def peak_bytes(self) -> int:
        """Return the peak of the process, or of its allocations on a CUDA device."""
        self._connection.send(None)
        peak: int = self._answer()
        return peak

    def close(self) -> None:
        """End the process."""
        if self._process.pid is not None:
            self._process.terminate()
            self._process.join()
        self._connection.close()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise SsmquantError(
                f"bench: the process that ran the model ended with status {self._process.exitcode} (-9: the system "
                "ended it, usually for want of memory); choose a smaller shape or fewer peers at once"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, spec: SubjectSpec, threads: int) -> None:
    """Load the model, then run a workload, or tell the peak, for each message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees Ctrl-C and ends this process
    os.environ["SSMQUANT_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        base, start = resident_bytes(), perf_counter()
        subject = spec.load()
        connection.send(subject.facts._replace(load_seconds=perf_counter() - start, base_bytes=base))
        synchronize: Callable[[], object] = torch.cuda.synchronize if spec.device == "cuda" else lambda: None
        while True:
            workload = connection.recv()
            if workload is None:
                connection.send(torch.cuda.max_memory_allocated() if spec.device == "cuda" else peak_bytes())
            else:
                connection.send(run_workload(subject.engine, workload, subject.vocab, synchronize))
    except (EOFError, BrokenPipeError):
        return  # the parent has gone
    except SsmquantError as error:
        connection.send(error)
    except Exception as error:  # whatever a model raises is to be told there, not here
        connection.send(SsmquantError(f"bench: {type(error).__name__} in the process of {spec}: {error}"))
