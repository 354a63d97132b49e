"""Units, sizes and choice of the probes; the numbers themselves are the machine's."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ssmquant.bench import probe as module
from ssmquant.bench.probe import NativeProbe, NumpyProbe, find_probe


class Extension:
    """Stands for the compiled one: reads 5 GB/s and makes 7 Gop/s a thread."""

    def __init__(self) -> None:
        self.buffers: list[np.ndarray[Any, Any]] = []

    def isa(self) -> str:
        return "fakeisa"

    def probe_read(self, buffer: np.ndarray[Any, Any], threads: int, seconds: float) -> float:
        self.buffers.append(buffer)
        return 5e9 * threads

    def probe_int8(self, threads: int, seconds: float) -> float:
        return 7e9 * threads


def test_the_extension_measures_with_the_threads_asked_for() -> None:
    extension: Any = Extension()
    probe = NativeProbe(3, extension)
    assert probe.isa == "fakeisa"
    assert probe.read_gbps(100 << 20) == pytest.approx(15)
    assert probe.int8_gops() == pytest.approx(21)
    (buffer,) = extension.buffers
    assert buffer.nbytes == 100 << 20
    assert buffer.any()  # pages that were never written are one page of zeros, which any cache holds


@pytest.mark.parametrize(("asked", "taken"), [(1, 64 << 20), (100 << 20, 100 << 20), (1 << 40, 1 << 30)])
def test_the_buffer_is_neither_small_nor_huge(
    monkeypatch: pytest.MonkeyPatch, asked: int, taken: int
) -> None:
    monkeypatch.setattr(NumpyProbe, "_read", lambda self, count: float(count))
    assert NumpyProbe(1).read_gbps(asked) == pytest.approx(taken / 1e9)


def test_without_the_extension_numpy_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssmquant.ops.native", None)  # importing it raises ImportError
    probe = find_probe("cpu", 1)
    assert probe.how == "numpy"
    assert probe.isa is None
    assert probe.int8_gops() is None
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    found = probe.read_gbps(64 << 20)
    # A pass that read nothing, or a unit mistaken by a thousand, is outside of what any machine does.
    assert 0.5 < found < 2000


def test_the_extension_is_preferred() -> None:
    native: ModuleType = pytest.importorskip("ssmquant._native")
    probe = find_probe("cpu", 1)
    assert (probe.how, probe.isa) == ("native", native.isa())


def test_the_compiled_probe_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ssmquant._native")
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    probe = find_probe("cpu", 1)
    read, peak = probe.read_gbps(64 << 20), probe.int8_gops()
    assert peak is not None
    assert 0.5 < read < 2000
    assert 1 < peak < 20_000
