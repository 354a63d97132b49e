"""`NativeEngine`: the CPU engine, which runs whole models of static int8 or float activations in C++.

A decode step is one call into the extension.

    support     why a model cannot be run
    packing     from stages to the extension's layers; `pages` gives the memory of what is packed back
    engine      prefill, step, and states, which are values
    records     saved states, from and to the layouts of the kernels

Importing this raises ImportError, with what to do about it, where the compiled extension is missing.
"""

from ssmquant.runtime.native.engine import NativeEngine, NativeState
from ssmquant.runtime.native.support import unsupported

__all__ = ["NativeEngine", "NativeState", "unsupported"]
