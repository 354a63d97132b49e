"""The compiled extension, for the modules that register its kernels.

Importing this module raises ImportError, with what to do about it, where the extension is missing.
"""

from __future__ import annotations

try:
    from ssmquant import _native as native
except ImportError as error:
    raise ImportError(
        "the compiled extension is missing; install ssmquant where a C++ compiler is, or from a wheel"
    ) from error

__all__ = ["native"]
