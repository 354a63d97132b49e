"""How an op chooses what runs, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops import Kernel, all_ops, use_backend
from ssmquant.ops.quantize import quantize_static
from ssmquant.ops.rms_norm import rms_norm

X, SCALE = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([0.5])
CODES = [[1, -2, 4]]


class Fake:
    """A kernel that answers zeros and counts its runs."""

    def __init__(self, backend: str = "cpu", device: str = "cpu", refuses: str | None = None) -> None:
        self.runs = 0
        self.kernel = Kernel(backend, device, self.run, lambda *args: refuses)

    def run(self, x: Tensor, scale: Tensor) -> Tensor:
        self.runs += 1
        return torch.zeros(x.shape, dtype=torch.int8)


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for op in all_ops().values():
        monkeypatch.setattr(op, "kernels", [])
        monkeypatch.setattr(op, "_missing", {"cpu": []})  # as if its kernels had been looked for
    yield


def test_without_kernels_the_reference_runs() -> None:
    assert quantize_static.chosen(X, SCALE) == ("reference", [])
    assert quantize_static(X, SCALE).tolist() == CODES


def test_a_fitting_kernel_runs() -> None:
    fake = Fake()
    quantize_static.register(fake.kernel)
    assert quantize_static.chosen(X, SCALE) == ("cpu", [])
    assert quantize_static(X, SCALE).tolist() == [[0, 0, 0]]
    assert torch.ops.ssmquant.quantize_static(X, SCALE).tolist() == [[0, 0, 0]]
    assert fake.runs == 2


def test_use_backend_reference_overrides_it() -> None:
    fake = Fake()
    quantize_static.register(fake.kernel)
    with use_backend("reference"):
        assert quantize_static.chosen(X, SCALE) == ("reference", [])
        assert quantize_static(X, SCALE).tolist() == CODES
    assert fake.runs == 0
    quantize_static(X, SCALE)
    assert fake.runs == 1


def test_the_override_ends_with_an_error_too() -> None:
    fake = Fake()
    quantize_static.register(fake.kernel)
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert quantize_static.chosen(X, SCALE) == ("cpu", [])


def test_overrides_nest() -> None:
    quantize_static.register(Fake().kernel)
    with use_backend("reference"):
        with use_backend("cpu"):
            assert quantize_static.chosen(X, SCALE) == ("cpu", [])
        assert quantize_static.chosen(X, SCALE) == ("reference", [])


def test_a_kernel_that_declines_says_why_and_the_next_is_asked() -> None:
    quantize_static.register(Fake("cpu", refuses="no codes of 3 channels").kernel)
    assert quantize_static.chosen(X, SCALE) == ("reference", ["cpu: no codes of 3 channels"])
    assert quantize_static(X, SCALE).tolist() == CODES
    second = Fake("other")
    quantize_static.register(second.kernel)
    assert quantize_static.chosen(X, SCALE) == ("other", ["cpu: no codes of 3 channels"])
    quantize_static(X, SCALE)
    assert second.runs == 1


def test_earlier_kernels_are_asked_first() -> None:
    first, second = Fake("first"), Fake("second")
    quantize_static.register(first.kernel)
    quantize_static.register(second.kernel)
    quantize_static(X, SCALE)
    with use_backend("second"):
        quantize_static(X, SCALE)
    assert (first.runs, second.runs) == (1, 1)


def test_kernels_of_other_devices_are_not_asked() -> None:
    quantize_static.register(Fake("triton", device="cuda").kernel)
    assert quantize_static.chosen(X, SCALE) == ("reference", [])


def test_supports_sees_the_arguments() -> None:
    quantize_static.register(
        Kernel("cpu", "cpu", Fake().run, lambda x, scale: "one token only" if x.shape[0] > 1 else None)
    )
    assert quantize_static.chosen(X, SCALE) == ("cpu", [])
    assert quantize_static.chosen(X.repeat(2, 1), SCALE) == ("reference", ["cpu: one token only"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("tritn", "backend 'tritn' is not registered; did you mean 'triton'"),
        ("xyz", "backend 'xyz' is not registered; known: cpu, reference, triton"),
    ],
)
def test_an_unknown_backend_is_an_error(asked: str, message: str) -> None:
    quantize_static.register(Fake("triton").kernel)
    with pytest.raises(InputError, match=re.escape(message)), use_backend(asked):
        pass


def test_a_wanted_backend_never_falls_back() -> None:
    quantize_static.register(Fake("cpu", refuses="no codes of 3 channels").kernel)
    with use_backend("cpu"):
        with pytest.raises(
            InputError, match=r"quantize_static: backend 'cpu' .* on 'cpu': cpu: no codes of 3"
        ):
            quantize_static(X, SCALE)
        with pytest.raises(
            InputError, match=r"rms_norm: backend 'cpu' .*it has no kernel for this op; leave"
        ):
            rms_norm(X, torch.ones(3), 1e-5, None)


def test_arguments_are_checked_before_a_kernel_sees_them() -> None:
    fake = Fake()
    quantize_static.register(fake.kernel)
    with pytest.raises(InputError, match="quantize_static: scale"):
        quantize_static(X, torch.ones(2))
    assert fake.runs == 0


def test_an_input_that_wants_gradients_goes_to_the_reference() -> None:
    zeros = Kernel("cpu", "cpu", lambda x, weight, eps, scale_out: torch.zeros_like(x), lambda *args: None)
    rms_norm.register(zeros)
    weight = torch.ones(3, requires_grad=True)
    arguments: tuple[Any, ...] = (X, weight, 1e-5, None)
    y = rms_norm(*arguments)
    assert y.requires_grad
    assert y.abs().min() > 0
    with torch.no_grad():
        assert rms_norm(*arguments).abs().max() == 0
    with pytest.raises(InputError, match="rms_norm: weight must have shape"):
        rms_norm(X, torch.ones(2, requires_grad=True), 1e-5, None)


def test_ops_are_torch_ops() -> None:
    for name, op in all_ops().items():
        assert op.name == name
        schema = getattr(torch.ops.ssmquant, name).default._schema
        assert not any(argument.alias_info for argument in schema.arguments)


def test_kernels_are_looked_for_once_a_device_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(quantize_static, "_missing", {})
    monkeypatch.setattr("ssmquant.ops.registry.find_spec", lambda name: looked.append(name))
    quantize_static(X, SCALE)
    quantize_static(X, SCALE)
    assert looked == ["ssmquant.ops.quantize.cpu"]


def test_kernels_that_cannot_be_imported_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("the compiled extension is missing")

    monkeypatch.setattr(quantize_static, "_missing", {})
    monkeypatch.setattr("ssmquant.ops.registry.find_spec", lambda name: name)
    monkeypatch.setattr("ssmquant.ops.registry.import_module", fail)
    assert quantize_static.chosen(X, SCALE) == ("reference", ["cpu: the compiled extension is missing"])
    with use_backend("cpu"), pytest.raises(InputError, match="the compiled extension is missing"):
        quantize_static(X, SCALE)
