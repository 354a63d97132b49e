"""Fixtures for every test: poisoned memory, the folder of larger models and text, and the embedded model."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.utils._device
from hypothesis import settings
from torch import Tensor

from ssmquant.data import builtin_model

# A shared machine may be slow: an example's time says nothing about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

if not torch.cuda.is_available():
    # Triton reads it when it is imported, by whomever; then its functions are interpreted or compiled for good.
    os.environ.setdefault("TRITON_INTERPRET", "1")

POISON = 113  # for integers: prime, positive, in range of int8 and of no meaning anywhere
ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))


def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap an allocator of uninitialised memory so that what is read before it is written shows."""

    @functools.wraps(allocate)
    def wrapper(*args: object, **kwargs: object) -> Tensor:
        tensor = allocate(*args, **kwargs)
        if tensor.layout is torch.strided and not tensor.is_quantized:
            with torch.no_grad():
                tensor.fill_(float("nan") if tensor.is_floating_point() or tensor.is_complex() else POISON)
        return tensor

    return wrapper


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Let fresh memory hold NaN (floats) or 113 (integers), so that an output that is never written fails a test."""
    # PyTorch looks once for the functions that `with torch.device(…)` steers; it has to find its own, not ours.
    torch.utils._device._device_constructors()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ALLOCATORS:
            patch.setattr(owner, name, poisoned(getattr(owner, name)))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with larger trained models and text: SSMQUANT_SHARED, or ``shared`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SSMQUANT_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the larger models: no folder {folder} (SSMQUANT_SHARED names another)")
    return folder


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """Folder of the Mamba-2 model that ships inside the package."""
    return builtin_model()
