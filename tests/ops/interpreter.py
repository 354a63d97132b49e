"""Triton's interpreter: kernels run on CPU tensors, one program after another. Import this before any kernel.

    from .interpreter import needs_interpreter
    pytestmark = needs_interpreter

Kernels are defined for the interpreter or for a GPU when Triton is imported, so a process does either: without a GPU
tests/conftest.py chooses the interpreter, with one the tests marked `needs_interpreter` are skipped (set
``TRITON_INTERPRET=1`` to run them there too; those that need the GPU are then skipped).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

__all__ = ["needs_interpreter"]

HAS_TRITON = find_spec("triton") is not None

if HAS_TRITON:
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
        """Patch as Triton 3.6 does, but convert arrays of one element as NumPy 2.4 wants it."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor_for_numpy

needs_interpreter = pytest.mark.skipif(
    not HAS_TRITON or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton's interpreter: triton is not installed"
    if not HAS_TRITON
    else "Triton compiles for the GPU of this machine; set TRITON_INTERPRET=1 for the interpreter",
)
