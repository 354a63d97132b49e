"""Prefill and decode on NVIDIA GPUs under CUDA graphs.

    network      what a model of static int8 is to the GPU: layers of codes and scales, and why a model cannot be one
    mamba1/2     the launches of its layers: a prompt, a step, the rounding of states
    stages       every other model: its stages as they are, captured
    slots        what is kept of sequences: allocated, shared by forks, copied before a write
    launches     all of them, in order, for prompts and steps
    records      what a slot holds, as saved states have it
    engine       `CudaEngine`: prompts in, logits out; a graph for each size of batch

Triton is needed (it comes with PyTorch for Linux) and a GPU of compute capability 8.0 or later; `Unsupported` tells why
there can be no engine for a model or on a machine.
"""

from __future__ import annotations

from ssmquant.runtime.cuda.engine import CudaEngine, CudaState
from ssmquant.runtime.cuda.network import Unsupported

__all__ = ["CudaEngine", "CudaState", "Unsupported"]
