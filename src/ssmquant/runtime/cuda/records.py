"""Saved states of the GPU engine: what a slot holds, as `runtime.state_file` has it, and back.

Layers of codes keep two things otherwise than a file. The newest inputs of the convolution lie in a ring, token t at
place t modulo d_conv. And Mamba-2 keeps dt of waiting tokens after bias and softplus: the code is found by its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ssmquant.ops.ssd.triton_step import in_blocks, in_order
from ssmquant.runtime.cuda.mamba2 import Mamba2Layers
from ssmquant.runtime.cuda.stages import StageLayers
from ssmquant.runtime.state_file import LayerRecord, SequenceRecord

if TYPE_CHECKING:
    from ssmquant.runtime.cuda.mamba1 import Mamba1Layers

__all__ = ["from_record", "to_record"]


def to_record(
    mixers: Mamba1Layers | Mamba2Layers | StageLayers, memory: dict[str, Tensor], slot: int, tokens: int
) -> SequenceRecord:
    """Return what a slot holds.

    Args:
        mixers: of the model.
        memory: of all slots, ``[layers, slots, …]`` each.
        slot: whose.
        tokens: that the sequence has seen.
    """
    if isinstance(mixers, StageLayers):
        parts = ([layer[name][slot].cpu() for name in ("conv", "state")] for layer in mixers.by_layer(memory))
        return SequenceRecord(tokens, tuple(LayerRecord(conv, state) for conv, state in parts))
    held = {name: tensor[:, slot].cpu() for name, tensor in memory.items()}
    taps = held["ring"].shape[1]
    time = torch.arange(tokens - taps, tokens)
    conv = held["ring"][:, time % taps] * (time >= 0).to(torch.int8)[:, None]
    waiting = tokens % mixers.interval if mixers.interval else 0
    pending: dict[str, Tensor] = {}
    if waiting:
        if isinstance(mixers, Mamba2Layers):
            distance = held["dt"][:, :waiting, None] - _steps(mixers)[:, None]  # [layers, tokens, 255, H]
            pending = {"x": in_order(held["x"]), "dt": (distance.abs().argmin(2) - 127).to(torch.int8)}
        else:
            pending = {"x": held["x"], "dt": held["dt"]}
        pending["B"] = held["B"]
    return SequenceRecord(
        tokens,
        tuple(
            LayerRecord(
                conv[layer].T, held["state"][layer],
                {name: pending[name][layer, :waiting] for name in ("x", "B", "dt") if waiting},
            )
            for layer in range(len(conv))
        ),
    )  # fmt: skip


def from_record(
    mixers: Mamba1Layers | Mamba2Layers | StageLayers,
    memory: dict[str, Tensor],
    slot: int,
    record: SequenceRecord,
) -> None:
    """Let a slot hold a sequence; arguments as for `to_record`, its position stays to be set."""
    if isinstance(mixers, StageLayers):
        for layer, saved in zip(mixers.by_layer(memory), record.layers, strict=True):
            layer["conv"][slot], layer["state"][slot] = saved.conv, saved.ssm
        return
    tokens = record.tokens
    taps = memory["ring"].shape[2]
    time = torch.arange(tokens - taps, tokens)
    conv = torch.stack([layer.conv for layer in record.layers]).transpose(1, 2)  # [layers, d_conv, channels]
    held = {
        "ring": torch.empty_like(conv).index_copy_(1, time % taps, conv),
        "state": torch.stack([layer.ssm for layer in record.layers]),
    }
    if record.layers[0].pending:
        held |= {
            name: torch.stack([layer.pending[name] for layer in record.layers]) for name in ("x", "B", "dt")
        }
        if isinstance(mixers, Mamba2Layers):
            index = held["dt"].long() + 127
            held["dt"] = _steps(mixers).gather(1, index)
            held["x"] = in_blocks(held["x"])
    for name, tensor in held.items():
        into = memory[name][:, slot]
        if name in ("ring", "state"):
            into.copy_(tensor)
        else:
            into[:, : tensor.shape[1]] = tensor.to(into.device)


def _steps(mixers: Mamba2Layers) -> Tensor:
    """Return dt after bias, softplus and limits of each code from -127 on, float32 ``[layers, 255, H]``."""
    c = mixers.constants
    code = torch.arange(-127, 128, device=c.dt_scale.device)[:, None]
    return softplus(code * c.dt_scale[:, None] + c.dt_bias[:, None]).clamp(*mixers.dt_limit).cpu()
