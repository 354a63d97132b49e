"""The compiled extension, for the modules that register its kernels.

Importing this module raises ImportError, with what to do about it, where the extension is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

try:
    native: Any = import_module("ssmquant._native")
except ImportError as error:
    raise ImportError(
        "the compiled extension is missing; install ssmquant where a C++ compiler is, or from a wheel"
    ) from error

__all__ = ["native"]
