"""Which models the CPU engine runs, and why it does not run another."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ssmquant.families import Shell
from ssmquant.modules.activation import Activation
from ssmquant.modules.weights import CausalConv1d, Embedding, Linear, Weight

__all__ = ["unsupported"]

# The formats that each stage's kernels read.
_FORMATS: dict[type[Weight], tuple[str, ...]] = {
    Linear: ("int8", "int4", "int4-progressive"),
    CausalConv1d: ("int8",),
    Embedding: ("dense", "int8"),
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
        if isinstance(site, Activation) and not site.scheme.is_static_int:
            yield f"{name} is {site.scheme.short()}, static int8 is supported"
        if site._forward_hooks:
            yield f"{name} is observed"
    for name, weight in shell.weights():
        supported = next(formats for kind, formats in _FORMATS.items() if isinstance(weight, kind))
        if weight.format.name not in supported:
            yield f"{name} is {weight.scheme.short()}, {' and '.join(supported)} are supported"
        if weight.format.name == "int4-progressive" and (weight.scheme.group_size or 0) % 8:
            yield f"{name} has groups of {weight.scheme.group_size} codes, multiples of 8 are supported"
    if shell.head.linear is None and shell.embedding.format.name != "int8":
        yield f"the head's weight is the embedding's, {shell.embedding.scheme.short()}; int8 is supported"
