"""From a shell's stages to the extension's: weights are packed, constants folded, one layer at a time.

What a stage hands on is codes where all sites that it writes side by side are int8 ones and every weight that reads
them multiplies codes; else it is floats, in which an int8 site's are the values of its codes. Which of the two is read
off the stages here; the extension only follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ssmquant.families import Block, Shell
from ssmquant.modules.activation import Activation
from ssmquant.modules.mamba1 import Mamba1Mixer
from ssmquant.modules.mamba2 import Mamba2Mixer
from ssmquant.modules.mixer import Mixer, StateSite
from ssmquant.modules.weights import CausalConv1d, Linear, RMSNorm, Weight
from ssmquant.ops.hadamard.matrix import base_order, matrix
from ssmquant.ops.native import native
from ssmquant.runtime.native.pages import FilePages

__all__ = ["LINEAR_FORMATS", "pack"]

_PACKERS = {
    "dense": native.dense_linear_packed,
    "int8": native.int8_linear_packed,
    "int4": native.int4_linear_packed,
    "int4-progressive": native.int4_progressive_linear_packed,
    "int4-asymmetric": native.int4_asymmetric_linear_packed,
}
# Formats that codes meet in integers.
_INTEGERS = ("int8", "int4", "int4-progressive")
LINEAR_FORMATS = tuple(_PACKERS)
"""Formats of linear layers that the extension runs."""


def pack(shell: Shell, pool: Any, *, keep_weights: bool) -> Any:
    """Return the extension's model of a shell that `unsupported` has nothing against.

    Pages of a file are given back to the system as they are packed, and so is the memory of weights that are not to be
    kept. So the peak of memory is that of the packed model, however large it is.

    Args:
        shell: the model; its tensors stay usable if they are kept.
        pool: threads of the engine.
        keep_weights: False drops the shell's weights once they are packed.
    """
    packer = _Packer(pool, keep_weights)
    layers = [packer.layer(block) for block in shell.blocks]
    return packer.model(shell, layers)


@dataclass(frozen=True)
class _Rows:
    """What one stage hands to others.

    Attributes:
        sites: the sites that it writes side by side.
        codes: whether they are codes, not floats.
    """

    sites: tuple[Activation, ...]
    codes: bool

    @classmethod
    def of(cls, sites: Sequence[Activation], *readers: Weight) -> _Rows:
        """Return the rows of some sites, read by some weights and by what takes codes as well as floats."""
        static = all(site.scheme.is_static_int for site in sites)
        return cls(tuple(sites), static and all(_multiplies_codes(weight, sites[0]) for weight in readers))

    def scale(self, index: int = 0) -> Tensor | None:
        """The scale of a site's codes; None for floats."""
        return _scale(self.sites[index]) if self.codes else None

    def to_native(self) -> Any:
        """Return the extension's sites."""
        if self.codes:
            reciprocal = 1.0 / _joined_scale(self.sites)
            return native.sites(reciprocal, [])
        starts = accumulate((site.channels for site in self.sites), initial=0)
        rounded = [
            (start, site.channels, _scale(site))
            for start, site in zip(starts, self.sites, strict=False)
            if site.scheme.is_static_int
        ]
        return native.sites(None, rounded)


_FLOATS = _Rows((), codes=False)


class _Packer:
    def __init__(self, pool: Any, keep_weights: bool) -> None:
        self._pool = pool
        self._keep_weights = keep_weights
        self._pages = FilePages()

    def model(self, shell: Shell, layers: list[Any]) -> Any:
        head, embedding = shell.head, shell.embedding
        normed = _Rows.of([head.input], head.linear or embedding)
        table, scale = None, None
        if head.linear is None:
            final = self.weight(embedding, normed, None, _FLOATS)
        else:
            final = self.linear(head.linear, normed, _FLOATS)
            table, scale, *_ = (*(tensor.detach() for tensor in embedding.stored.values()), None)
        return native.model(
            d_model=embedding.shape[1], embedding=table, embedding_scale=scale, layers=layers,
            final_norm=_norm(shell.final_norm, normed), head=final, pool=self._pool,
        )  # fmt: skip

    def layer(self, block: Block) -> Any:
        mixer = block.mixer
        hidden = _Rows.of([mixer.site("hidden")], mixer.in_proj)
        y = _Rows.of([mixer.site("y")], mixer.out_proj)
        common = {
            "norm": _norm(block.norm, hidden),
            "transform": native.transform(_hadamard_base(mixer)),
            "y": y.to_native(),
            "out_proj": self.linear(mixer.out_proj, y, _FLOATS),
            "state": str(mixer.state.dtype).removeprefix("torch."),
            "interval": mixer.state.interval,
        }
        if isinstance(mixer, Mamba2Mixer):
            return native.mamba2(**common | self.mamba2(mixer, hidden))
        assert isinstance(mixer, Mamba1Mixer)
        return native.mamba1(**common | self.mamba1(mixer, hidden))

    def mamba2(self, mixer: Mamba2Mixer, hidden: _Rows) -> dict[str, Any]:
        d = mixer.dims
        z_to_dt = _Rows.of([mixer.site(name) for name in ("z", "x_in", "B_in", "C_in", "dt")])
        x_to_C = _Rows.of([mixer.site(name) for name in ("x", "B", "C")])
        return {
            "in_proj": self.linear(mixer.in_proj, hidden, z_to_dt),
            "conv": _convolution(mixer.conv1d, _Rows(z_to_dt.sites[1:4], z_to_dt.codes), x_to_C),
            "heads": d.nheads,
            "headdim": d.headdim,
            "groups": d.ngroups,
            "d_state": d.d_state,
            "dt_min": d.dt_min,
            "dt_max": d.dt_max,
            "A": -torch.exp(mixer.A_log.detach()),
            "D": mixer.D.detach(),
            "dt_bias": mixer.dt_bias.detach(),
            "scales": [z_to_dt.scale(0), *(x_to_C.scale(index) for index in range(3)), z_to_dt.scale(4)],
            "norm_weight": mixer.norm.weight.detach(),
            "norm_eps": d.norm_eps,
            "state_scale": None if mixer.state.scheme.is_float else mixer.state.scale.detach(),
            "state_row": _state_rows(mixer.state),
        }

    def mamba1(self, mixer: Mamba1Mixer, hidden: _Rows) -> dict[str, Any]:
        d = mixer.dims
        x_in_and_z = _Rows.of([mixer.site(name) for name in ("x_in", "z")])
        x = _Rows.of([mixer.site("x")], mixer.x_proj)
        dt_to_C = _Rows.of([mixer.site(name) for name in ("dt_in", "B", "C")], mixer.dt_proj)
        dt = _Rows.of([mixer.site("dt")])
        normed = d.dt_B_C_eps is not None
        return {
            "in_proj": self.linear(mixer.in_proj, hidden, x_in_and_z),
            "conv": _convolution(mixer.conv1d, _Rows(x_in_and_z.sites[:1], x_in_and_z.codes), x),
            "x_proj": self.linear(mixer.x_proj, x, _FLOATS if normed else dt_to_C),
            # Its bias is dt_bias, which enters in the scan.
            "dt_proj": self.weight(mixer.dt_proj, dt_to_C, None, dt),
            "d_state": d.d_state,
            "dt_rank": d.dt_rank,
            "A": -torch.exp(mixer.A_log.detach()).T.contiguous(),
            "D": mixer.D.detach(),
            "dt_bias": _bias(mixer.dt_proj),
            "scales": [x_in_and_z.scale(1), x.scale(), dt_to_C.scale(1), dt_to_C.scale(2), dt.scale()],
            "select_eps": d.dt_B_C_eps if normed else -1.0,
            "selected": dt_to_C.to_native(),
            "state_scale": None if mixer.state.scheme.is_float else mixer.state.scale.detach().flatten(),
        }

    def linear(self, linear: Linear, inputs: _Rows, outputs: _Rows) -> Any:
        bias = None if linear.bias is None else linear.bias.detach()
        return self.weight(linear, inputs, bias, outputs)

    def weight(self, weight: Weight, inputs: _Rows, bias: Tensor | None, outputs: _Rows) -> Any:
        """Return a packed weight with what it reads and writes; its first input site is the one that it multiplies."""
        stored = [tensor.detach() for tensor in weight.stored.values()]
        main, *others = stored
        arguments: list[Any] = [_narrowest(main)] if weight.format.name == "dense" else others
        drop = not self._keep_weights and all(_owns_its_memory(tensor) for tensor in stored)
        scale = inputs.scale()
        packed = _PACKERS[weight.format.name](
            self._pool, main, *arguments, x_scale=None if scale is None else scale.item(), bias=bias,
            sites=outputs.to_native(), consume=drop or all(self._pages.hold(tensor) for tensor in stored),
        )  # fmt: skip
        if drop:
            for tensor in stored:
                tensor.untyped_storage().resize_(0)
        return packed


def _multiplies_codes(weight: Weight, site: Activation) -> bool:
    """Return whether codes of a site meet a weight in integers, as its format has it."""
    return weight.format.name in _INTEGERS and _scale(site).numel() == 1


def _narrowest(weight: Tensor) -> str:
    """Return the name of the narrowest float type that has every number of a weight.

    A checkpoint in half precision is float32 once it is loaded; packed, it is what it was.
    """
    narrower = (torch.bfloat16, torch.float16) if weight.dtype == torch.float32 else ()
    for dtype in narrower:
        if all(torch.equal(part.to(dtype).float(), part) for part in weight.split(1024)):
            return str(dtype).removeprefix("torch.")
    return str(weight.dtype).removeprefix("torch.")


def _owns_its_memory(tensor: Tensor) -> bool:
    """Return whether a tensor's memory can be freed, and no other tensor has a part of it."""
    storage = tensor.untyped_storage()
    return storage.resizable() and storage.nbytes() == tensor.nbytes


def _norm(norm: RMSNorm, outputs: _Rows) -> Any:
    return native.norm(norm.weight.detach(), norm.eps, outputs.to_native())


def _convolution(conv: CausalConv1d, inputs: _Rows, outputs: _Rows) -> Any:
    scale = _joined_scale(inputs.sites) if inputs.codes else None
    if scale is not None and conv.format.name == "int8":
        weight, scale = conv.stored["codes"], scale * conv.stored["scale"]
    else:
        weight = conv.dequantize().detach().float()
    bias = None if conv.bias is None else conv.bias.detach()
    return native.convolution(weight.T.contiguous(), scale, bias, outputs.to_native())


def _bias(linear: Linear) -> Tensor:
    assert linear.bias is not None
    return linear.bias.detach()


def _scale(site: Activation) -> Tensor:
    scale = site.static_scale
    assert scale is not None
    return scale


def _joined_scale(sites: Sequence[Activation]) -> Tensor:
    """Return the scales of sites side by side, one a channel, or one for all channels of a single site."""
    if len(sites) == 1:
        return _scale(sites[0])
    return torch.cat([_scale(site).expand(site.channels) for site in sites])


def _hadamard_base(mixer: Mixer) -> Tensor | None:
    """Return the transposed base matrix of the transform before out_proj; None for no transform."""
    if not mixer.hadamard:
        return None
    return matrix(base_order(mixer.out_proj.shape[1]) or 1).float().T.contiguous()


def _state_rows(state: StateSite) -> Tensor | None:
    """Return which row of the scales each row of an int8 state has; None where all have the first."""
    if state.scheme.is_float or state.scale.shape[0] == 1:
        return None
    return state.group if "group" in state._buffers else torch.arange(state.rows, dtype=torch.int16)
