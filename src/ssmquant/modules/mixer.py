"""`Mixer`: what Mamba-1 and Mamba-2 share: sites, state, and the way a scan meets its state.

The body of a mixer is written once for a whole sequence and for one step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssmquant.errors import RecipeError
from ssmquant.modules.activation import Activation, QTensor
from ssmquant.modules.state import MixerState, join_tokens
from ssmquant.modules.weights import Linear
from ssmquant.scheme import FLOAT32, Granularity, TensorScheme
from ssmquant.sites import Site, SiteKind

__all__ = ["FLOAT_LAYER", "LayerSchemes", "Mixer", "StateSite"]


@dataclass(frozen=True)
class LayerSchemes:
    """What a plan says of one layer.

    Attributes:
        schemes: scheme of each site that is not float32, by the site's name within the layer.
        hadamard: whether the layer transforms y online before out_proj.
    """

    schemes: Mapping[str, TensorScheme]
    hadamard: bool = False

    def __getitem__(self, site: str) -> TensorScheme:
        return self.schemes.get(site, FLOAT32)


FLOAT_LAYER = LayerSchemes({})


class StateSite(nn.Module):
    """The place of the recurrent state: its dtype at rest, its scales, the interval of its roundings.

    Args:
        dims: name and size of each dimension; the last is ``d_state``.
        scheme: float32, float16 or static int8.
    """

    scale: Tensor
    group: Tensor
    # Tokens between two looks at a float state while it is observed. A multiple of the scans' chunk lengths, so that
    # looking changes no sum.
    SAMPLE_EVERY: ClassVar[int] = 64

    def __init__(self, dims: Mapping[str, int], scheme: TensorScheme) -> None:
        super().__init__()
        self.dims = dict(dims)
        self.scheme = scheme
        *rows, _d_state = dims.values()
        self.rows = torch.Size(rows).numel()
        if not scheme.is_float:
            self.register_buffer("scale", torch.empty(self.scale_shape(dims, scheme), dtype=torch.float32))
            if scheme.granularity is Granularity.PER_HEAD_GROUP:
                self.register_buffer("group", torch.empty(self.rows, dtype=torch.int16))

    @staticmethod
    def scale_shape(dims: Mapping[str, int], scheme: TensorScheme) -> tuple[int, int]:
        """Return the shape of the stored scales.

        Raises:
            RecipeError: the scheme has no meaning for a state.
        """
        *rows, d_state = dims.values()
        count = torch.Size(rows).numel()
        if scheme.kind == "int" and scheme.bits == 8 and scheme.symmetric and not scheme.dynamic:
            match scheme.granularity:
                case Granularity.PER_TENSOR:
                    return (1, 1)
                case Granularity.PER_CHANNEL:
                    return (count, 1)
                case Granularity.PER_HEAD_GROUP if (
                    "heads" in dims and scheme.head_groups and scheme.channel_groups
                ):
                    clusters = min(scheme.head_groups, dims["heads"]) * min(
                        scheme.channel_groups, dims["headdim"]
                    )
                    return (dims["ngroups"] * clusters, d_state)
        raise RecipeError(
            f"scheme {scheme.short()!r} has no meaning for a recurrent state of dimensions {dict(dims)}"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype at rest."""
        if not self.scheme.is_float:
            return torch.int8
        return torch.float16 if self.scheme.bits == 16 else torch.float32

    @property
    def interval(self) -> int:
        """Tokens between two roundings; 0 for float32."""
        return self.scheme.interval or 0

    def static_scale(self, shape: Sequence[int]) -> Tensor | None:
        """Return the scale, broadcastable to a state of this shape (batch left out); None for a float."""
        if self.scheme.is_float:
            return None
        scale = (
            self.scale[self.group.long()] if "group" in self._buffers else self.scale
        )  # [1 or rows, 1 or N]
        return scale.view(*(shape[:-1] if scale.shape[0] > 1 else [1] * (len(shape) - 1)), scale.shape[1])

    def forward(self, state: Tensor) -> Tensor:
        """Return the float state as it is; observers see it here."""
        return state

    def extra_repr(self) -> str:
        """Return the scheme."""
        return self.scheme.short()


class Mixer(nn.Module, ABC):
    """Base of the mixers.

    `mix` is the mixer; `families` gives it transformers' forward signature besides.
    """

    act: nn.ModuleDict
    state: StateSite
    in_proj: Linear
    out_proj: Linear
    hadamard: bool

    @staticmethod
    def add_sites(sites: Sequence[Site], layer: LayerSchemes) -> tuple[nn.ModuleDict, StateSite]:
        """Return the modules of the activation sites by name, and of the state."""
        act = nn.ModuleDict()
        for site in sites:
            if site.kind is SiteKind.ACTIVATION:
                act[site.name] = Activation(site.dims, layer[site.name])
        (state,) = (site for site in sites if site.kind is SiteKind.STATE)
        return act, StateSite(state.dims, layer[state.name])

    @abstractmethod
    def initial_state(self, batch: int, dtype: torch.dtype) -> MixerState:
        """Return the state before the first token.

        Args:
            batch: sequences.
            dtype: float dtype of activations that are not quantised.
        """

    @abstractmethod
    def mix(self, hidden: Tensor, state: MixerState | None = None) -> Tensor:
        """Return the mixer's output for a whole sequence or one step.

        Args:
            hidden: float ``[B, L, d_model]``, after the norm.
            state: of the tokens before; updated. None: the sequence starts here and its state is not wanted.
        """

    def forward(self, hidden: Tensor, state: MixerState | None = None) -> Tensor:
        """Return `mix` of the same arguments."""
        return self.mix(hidden, state)

    def site(self, name: str) -> Activation:
        """Return the activation site of this name."""
        module = self.act[name]
        assert isinstance(module, Activation)
        return module

    def run_scan(
        self,
        scan: Callable[[Sequence[QTensor], Tensor, Tensor | None, int], tuple[Tensor, Tensor]],
        inputs: Sequence[QTensor],
        state: MixerState,
    ) -> Tensor:
        """Run a scan over the pending and the new tokens, update the state, return y of the new ones.

        Args:
            scan: from (inputs, state, state_scale, interval) to (y, state).
            inputs: scan inputs, each ``[B, L, …]``.
            state: updated in place of its attributes.
        """
        new = inputs[0].data.shape[1]
        tokens = join_tokens(state.pending, inputs)
        length = tokens[0].data.shape[1]
        scale, interval = self.state.static_scale(state.ssm.shape[1:]), self.state.interval
        if self.state._forward_hooks:
            return self._observed_scan(scan, tokens, state)
        y, state.ssm = scan(tokens, state.ssm, scale, interval)
        kept = length - length % interval if interval else length
        state.pending = tuple(t.tokens(kept).alone() for t in tokens) if kept < length else ()
        return y[:, length - new :]

    def _observed_scan(
        self,
        scan: Callable[[Sequence[QTensor], Tensor, Tensor | None, int], tuple[Tensor, Tensor]],
        tokens: Sequence[QTensor],
        state: MixerState,
    ) -> Tensor:
        """The same in short pieces, so that observers see the float state between them."""
        outputs = []
        for start in range(0, tokens[0].data.shape[1], StateSite.SAMPLE_EVERY):
            part = [t.tokens(start, start + StateSite.SAMPLE_EVERY) for t in tokens]
            y, state.ssm = scan(part, state.ssm, None, 0)
            self.state(state.ssm)
            outputs.append(y)
        return torch.cat(outputs, dim=1)
