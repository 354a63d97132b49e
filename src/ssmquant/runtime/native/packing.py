"""From a shell's stages to the extension's: weights are packed, constants folded, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = ["pack"]


def pack(shell: Shell, pool: Any, *, keep_weights: bool) -> Any:
    """Return the extension's model of a shell that `unsupported` has nothing against.

    Pages of a file are given back to the system as they are packed, and so is the memory of weights that are not to be
    kept. So the peak of memory is that of the packed model, however large it is.

    Args:
        shell: the model; its tensors stay usable if they are kept.
        pool: threads of the engine.
        keep_weights: False drops the shell's codes once they are packed.
    """
    packer = _Packer(pool, keep_weights)
    layers = [packer.layer(block) for block in shell.blocks]
    return packer.model(shell, layers)


class _Packer:
    def __init__(self, pool: Any, keep_weights: bool) -> None:
        self._pool = pool
        self._keep_weights = keep_weights
        self._pages = FilePages()

    def model(self, shell: Shell, layers: list[Any]) -> Any:
        head, embedding = shell.head, shell.embedding
        table, scale = None, None
        if head.linear is None:
            final = self.weight(embedding, [head.input], None, [])
        else:
            final = self.linear(head.linear, head.input, [])
            stored = embedding.stored
            table, scale = (stored[name].detach() if name in stored else None for name in ("codes", "scale"))
            if table is None:
                table = stored["weight"].detach()
        norm = self.norm(shell.final_norm, head.input)
        return native.model(
            d_model=embedding.shape[1], embedding=table, embedding_scale=scale, layers=layers, final_norm=norm,
            head=final, pool=self._pool,
        )  # fmt: skip

    def layer(self, block: Block) -> Any:
        mixer = block.mixer
        common = {
            "norm": self.norm(block.norm, mixer.site("hidden")),
            "transform": native.transform(_hadamard_base(mixer)),
            "y_reciprocal": _reciprocal(mixer.site("y")),
            "out_proj": self.linear(mixer.out_proj, mixer.site("y"), []),
            "state": str(mixer.state.dtype).removeprefix("torch."),
            "interval": mixer.state.interval,
        }
        if isinstance(mixer, Mamba2Mixer):
            return native.mamba2(**common, **self.mamba2(mixer))
        assert isinstance(mixer, Mamba1Mixer)
        return native.mamba1(**common, **self.mamba1(mixer))

    def mamba2(self, mixer: Mamba2Mixer) -> dict[str, Any]:
        d, site = mixer.dims, mixer.site
        segments = [site(name) for name in ("z", "x_in", "B_in", "C_in", "dt")]
        return {
            "in_proj": self.linear(mixer.in_proj, site("hidden"), segments),
            "conv": _convolution(mixer.conv1d, segments[1:4], [site(name) for name in ("x", "B", "C")]),
            "heads": d.nheads,
            "headdim": d.headdim,
            "groups": d.ngroups,
            "d_state": d.d_state,
            "dt_min": d.dt_min,
            "dt_max": d.dt_max,
            "A": -torch.exp(mixer.A_log.detach()),
            "D": mixer.D.detach(),
            "dt_bias": mixer.dt_bias.detach(),
            **{f"{name}_scale": _scale(site(name)) for name in ("z", "x", "B", "C", "dt")},
            "norm_weight": mixer.norm.weight.detach(),
            "norm_eps": d.norm_eps,
            "state_scale": None if mixer.state.scheme.is_float else mixer.state.scale.detach(),
            "state_row": _state_rows(mixer.state),
        }

    def mamba1(self, mixer: Mamba1Mixer) -> dict[str, Any]:
        d, site = mixer.dims, mixer.site
        selected = [site(name) for name in ("dt_in", "B", "C")]
        normed = d.dt_B_C_eps is not None
        return {
            "in_proj": self.linear(mixer.in_proj, site("hidden"), [site("x_in"), site("z")]),
            "conv": _convolution(mixer.conv1d, [site("x_in")], [site("x")]),
            "x_proj": self.linear(mixer.x_proj, site("x"), [] if normed else selected),
            # Its bias is dt_bias, which enters in the scan.
            "dt_proj": self.weight(mixer.dt_proj, [site("dt_in")], None, [site("dt")]),
            "d_state": d.d_state,
            "dt_rank": d.dt_rank,
            "A": -torch.exp(mixer.A_log.detach()).T.contiguous(),
            "D": mixer.D.detach(),
            "dt_bias": _bias(mixer.dt_proj),
            **{f"{name}_scale": _scale(site(name)) for name in ("z", "x", "B", "C", "dt")},
            "select_eps": d.dt_B_C_eps if normed else -1.0,
            **{f"{name}_reciprocal": _reciprocal(site(name)) for name in ("dt_in", "B", "C")},
            "state_scale": None if mixer.state.scheme.is_float else mixer.state.scale.detach().flatten(),
        }

    def norm(self, norm: RMSNorm, site: Activation) -> Any:
        return native.norm(norm.weight.detach(), norm.eps, _reciprocal(site).item())

    def linear(self, linear: Linear, site: Activation, outputs: Sequence[Activation]) -> Any:
        bias = None if linear.bias is None else linear.bias.detach()
        return self.weight(linear, [site], bias, outputs)

    def weight(
        self, weight: Weight, inputs: Sequence[Activation], bias: Tensor | None, outputs: Sequence[Activation]
    ) -> Any:
        """Return a packed weight whose results are codes of some sites side by side, or floats for no sites."""
        (site,) = inputs
        packers = {
            "int8": native.int8_linear_packed,
            "int4": native.int4_linear_packed,
            "int4-progressive": native.int4_progressive_linear_packed,
        }
        codes, *factors = weight.stored.values()
        drop = not self._keep_weights and _owns_its_memory(codes)
        reciprocal = (
            torch.cat([_reciprocal(out).expand(out.channels) for out in outputs]) if outputs else None
        )
        packed = packers[weight.format.name](
            self._pool, codes, *factors, _scale(site).item(), bias, reciprocal,
            consume=self._pages.hold(codes) or drop,
        )  # fmt: skip
        if drop:
            codes.untyped_storage().resize_(0)
        return packed


def _owns_its_memory(tensor: Tensor) -> bool:
    """Return whether a tensor's memory can be freed, and no other tensor has a part of it."""
    storage = tensor.untyped_storage()
    return storage.resizable() and storage.nbytes() == tensor.nbytes


def _convolution(conv: CausalConv1d, inputs: Sequence[Activation], outputs: Sequence[Activation]) -> Any:
    stored = conv.stored
    x_scale = torch.cat([_scale(site).expand(site.channels) for site in inputs])
    reciprocal = torch.cat([_reciprocal(site).expand(site.channels) for site in outputs])
    bias = None if conv.bias is None else conv.bias.detach()
    return native.convolution(stored["codes"].T.contiguous(), x_scale * stored["scale"], bias, reciprocal)


def _bias(linear: Linear) -> Tensor:
    assert linear.bias is not None
    return linear.bias.detach()


def _scale(site: Activation) -> Tensor:
    scale = site.static_scale
    assert scale is not None
    return scale


def _reciprocal(site: Activation) -> Tensor:
    return 1.0 / _scale(site)


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
