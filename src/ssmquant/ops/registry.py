"""`Op`: one schema, one check, one exact reference, any number of kernels.

Ops are registered with ``torch.library`` (``Library.define`` + ``.impl``: the cheapest route through the
dispatcher), so
``torch.compile``, fake tensors and CUDA graphs see them as ``torch.ops.ssmquant.<name>``. A kernel says what
it supports
and why not; an op without a fitting kernel runs its reference, and `Op.chosen` tells which one it would be.
Gradients are those of the reference (plain PyTorch): an input that requires grad goes there directly.

Kernels live beside the op: ``ops/<op>/cpu.py`` (C++), ``ops/<op>/triton.py`` and, where floats need kernels of their
own, ``ops/<op>/triton_float.py`` register theirs when they are imported, which happens the first time that the op runs
on such a device. One that cannot be imported (no compiled extension, no Triton) is a reason like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ssmquant.errors import InputError, nearest

__all__ = ["Kernel", "Op", "all_ops", "forced_backend", "use_backend"]

_LIBRARY = torch.library.Library("ssmquant", "DEF")
_OPS: dict[str, Op] = {}
_BACKEND: ContextVar[str | None] = ContextVar("ssmquant_backend", default=None)
REFERENCE = "reference"
_BACKENDS = {"cpu": "cpu", "cuda": "triton"}  # device type -> the backend of its kernels
_MODULES = {
    "cpu": ("cpu",),
    "triton": ("triton", "triton_float"),
}  # backend -> the modules beside an op that register kernels, as far as it has them; earlier ones are asked first


@dataclass(frozen=True)
class Kernel:
    """A fast implementation of an op.

    Attributes:
        backend: name of the backend, ``cpu`` or ``triton``.
        device: torch device type that it runs on.
        run: the implementation; arguments and results are those of the op's schema. Results are contiguous and
            share no memory with the arguments.
        supports: given the op's arguments, None or the reason why they are not supported.
    """

    backend: str
    device: str
    run: Callable[..., Any]
    supports: Callable[..., str | None]


class Op:
    """A registered operation; call it like a function.

    Args:
        schema: torch schema, ``name(Tensor x, …) -> Tensor``.
        check: raises `InputError` for arguments that no implementation accepts; called before every run.
        reference: exact implementation in PyTorch, for every device and differentiable where the inputs are float.
        fake: shape and dtype of the results (contiguous), from fake tensors.
    """

    def __init__(
        self,
        schema: str,
        *,
        check: Callable[..., None],
        reference: Callable[..., Any],
        fake: Callable[..., Any],
    ) -> None:
        self.name = schema.partition("(")[0]
        self.check = check
        self.reference = reference
        self.kernels: list[Kernel] = []
        self._package = check.__module__
        self._missing: dict[
            str, list[str]
        ] = {}  # by device whose kernels were looked for: why there are none
        _LIBRARY.define(schema)
        _LIBRARY.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"ssmquant::{self.name}", fake, lib=_LIBRARY)
        self._overload = getattr(torch.ops.ssmquant, self.name).default
        _OPS[self.name] = self

    def __call__(self, *args: Any) -> Any:
        """Run the op; arguments as in its schema, all by position."""
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            self.check(*args)
            return self.reference(*args)
        return self._overload(*args)

    def register(self, kernel: Kernel) -> None:
        """Add a kernel; kernels registered earlier are asked first."""
        self.kernels.append(kernel)

    def chosen(self, *args: Any) -> tuple[str, list[str]]:
        """Return the backend that would run these arguments, and the reasons of those that declined."""
        kernel, reasons = self._select(args)
        return (kernel.backend if kernel else REFERENCE), reasons

    def _select(self, args: tuple[Any, ...]) -> tuple[Kernel | None, list[str]]:
        wanted = _BACKEND.get()
        reasons: list[str] = []
        if wanted == REFERENCE:
            return None, reasons
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        reasons += self._discover(device)
        for kernel in self.kernels:
            if kernel.device != device or wanted not in (None, kernel.backend):
                continue
            reason = kernel.supports(*args)
            if reason is None:
                return kernel, reasons
            reasons.append(f"{kernel.backend}: {reason}")
        if wanted is not None:
            raise InputError(
                f"{self.name}: backend {wanted!r} was asked for and cannot run these arguments on {device!r}: "
                f"{'; '.join(reasons) or 'it has no kernel for this op'}; leave use_backend away or use 'reference'"
            )
        return None, reasons

    def _discover(self, device: str) -> list[str]:
        """Import the op's kernels for a device, once; return why there are none, if that is so."""
        if device not in self._missing:
            self._missing[device] = []
            backend = _BACKENDS.get(device, "")
            for module in (f"{self._package}.{name}" for name in _MODULES.get(backend, ())):
                try:
                    if find_spec(module):
                        import_module(module)
                except ImportError as error:
                    self._missing[device] = [f"{backend}: {error}"]
        return self._missing[device]

    def _run(self, *args: Any) -> Any:
        self.check(*args)
        kernel, _ = self._select(args)
        return kernel.run(*args) if kernel else _contiguous(self.reference(*args))


def _contiguous(results: Any) -> Any:
    """Return a reference's results in the layout that fakes promise and kernels write."""
    return results.contiguous() if isinstance(results, Tensor) else tuple(r.contiguous() for r in results)


def all_ops() -> dict[str, Op]:
    """Return every op that has been imported, by name."""
    return dict(_OPS)


def forced_backend() -> str | None:
    """Return the backend that `use_backend` asks for here, None outside of it."""
    return _BACKEND.get()


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run every op inside the block with one backend; an op that cannot raises `InputError` instead of falling back.

    Args:
        backend: ``reference`` or the backend of a registered kernel.
    """
    known = {REFERENCE, *_BACKENDS.values()} | {
        kernel.backend for op in _OPS.values() for kernel in op.kernels
    }
    if backend not in known:
        raise InputError(f"backend {backend!r} is not registered; {nearest(backend, known)}")
    token = _BACKEND.set(backend)
    try:
        yield
    finally:
        _BACKEND.reset(token)
