"""Which models the CPU engine runs, and why it does not run another."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ssmquant.families import Shell
from ssmquant.modules.activation import Activation
from ssmquant.modules.weights import CausalConv1d, Embedding, Linear, Weight
from ssmquant.runtime.native.packing import LINEAR_FORMATS

__all__ = ["unsupported"]

# The formats that each stage's kernels read.
_FORMATS: dict[type[Weight], tuple[str, ...]] = {
    Linear: LINEAR_FORMATS,
    CausalConv1d: ("dense", "int8"),
    Embedding: ("dense", "int8", "int4"),
}


def unsupported(shell: Shell) -> str | None:
    """Return why the CPU engine cannot run a model; None if it can.

    Args:
        shell: the model.
    """
    if shell.device.type != "cpu":
        return f"the model is on {shell.device}"
    if shell.final_norm.weight.dtype != torch.float32:
        return f"its floats are {shell.final_norm.weight.dtype}, float32 is supported"
    return next(_reasons(shell), None)


def _reasons(shell: Shell) -> Iterator[str]:
    for name, site in shell.activations():
        if isinstance(site, Activation) and site.scheme.dynamic:
            yield f"{name} is {site.scheme.short()}, static int8 and float32 are supported"
        if site._forward_hooks:
            yield f"{name} is observed"
    for name, weight in shell.weights():
        supported = next(formats for kind, formats in _FORMATS.items() if isinstance(weight, kind))
        if weight.format.name not in supported:
            yield f"{name} is {weight.scheme.short()}, {', '.join(supported)} are supported"
        if weight.format.name == "int4-progressive" and (weight.scheme.group_size or 0) % 8:
            yield f"{name} has groups of {weight.scheme.group_size} codes, multiples of 8 are supported"
