"""The limits of the machine, measured beside the models: how fast it reads memory, how many int8 operations it makes.

    probe = find_probe("cpu", threads=2)
    probe.read_gbps(2**30), probe.int8_gops()

The reads are of a buffer as large as what a step of the model reads, so that a model which fits into a cache is held
against the speed of that cache. The C++ extension has both measurements, for the instruction set that its kernels use.
Without it NumPy reads, and there is no integer peak to compare with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch

__all__ = ["Probe", "find_probe"]

_SECONDS = 0.4  # of each measurement
_LEAST, _MOST = 64 << 20, 1 << 30  # bytes of the buffer; no cache holds more than the most


class Probe(ABC):
    """Measures one device.

    Args:
        threads: how many work together.
    """

    how: ClassVar[str]
    isa: str | None = None

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def read_gbps(self, count: int) -> float:
        """Return how fast a buffer is read over and over, GB/s (10^9), the fastest pass.

        Args:
            count: bytes of the buffer; taken between 64 MiB and 1 GiB.
        """
        return self._read(min(max(count, _LEAST), _MOST)) / 1e9

    @abstractmethod
    def _read(self, count: int) -> float:
        """Return bytes a second."""

    @abstractmethod
    def int8_gops(self) -> float | None:
        """Return 10^9 int8 operations a second, a multiplication and an addition being two; None if unknown."""


class NativeProbe(Probe):
    """The C++ extension's."""

    how = "native"

    def __init__(self, threads: int, extension: ModuleType) -> None:
        super().__init__(threads)
        self._extension = extension
        self.isa = extension.isa()

    def _read(self, count: int) -> float:
        buffer = np.ones(count, np.uint8)
        return float(self._extension.probe_read(buffer, self.threads, _SECONDS))

    def int8_gops(self) -> float:
        """Return the products of registers, on all threads."""
        return float(self._extension.probe_int8(self.threads, _SECONDS)) / 1e9


class NumpyProbe(Probe):
    """Reads with NumPy, whose reductions run outside the interpreter's lock."""

    how = "numpy"

    def _read(self, count: int) -> float:
        parts = np.array_split(np.ones(count // 8, np.int64), 8 * self.threads)
        with ThreadPoolExecutor(self.threads) as pool:
            return _fastest(lambda: list(pool.map(np.max, parts)), count)

    def int8_gops(self) -> None:
        """Return None: NumPy has no integer products to speak of."""


class CudaProbe(Probe):
    """Reads and multiplies with PyTorch on the current CUDA device."""

    how = "cuda"

    def _read(self, count: int) -> float:
        buffer = torch.ones(count // 4, dtype=torch.int32, device="cuda")
        return _fastest(lambda: int(buffer.amax()), count)

    def int8_gops(self) -> float:
        """Return the products of matrices that fill the device."""
        size = 8192
        a, b = (torch.ones(size, size, dtype=torch.int8, device="cuda") for _ in range(2))

        def multiply() -> None:
            torch._int_mm(a, b.t())
            torch.cuda.synchronize()

        return _fastest(multiply, 2 * size**3) / 1e9


def find_probe(device: str, threads: int) -> Probe:
    """Return the probe of a device: on the CPU the extension's where it is installed.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: how many work together; of no meaning for a CUDA device.
    """
    if device == "cuda":
        return CudaProbe(threads)
    try:
        from ssmquant.ops.native import native
    except ImportError:
        return NumpyProbe(threads)
    return NativeProbe(threads, native)


def _fastest(work: Callable[[], object], amount: float) -> float:
    """Return the amount a second of the fastest run, after one that does not count."""
    work()
    best, begin = float("inf"), perf_counter()
    while perf_counter() - begin < _SECONDS:
        start = perf_counter()
        work()
        best = min(best, perf_counter() - start)
    return amount / best
