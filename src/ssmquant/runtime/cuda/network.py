"""What a model is to the GPU engine: codes and scales in the shapes that kernels take, free of transformers and plans.

`network_of` reads a shell; a model whose stages do not all have codes raises `Unsupported` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ssmquant.ops.hadamard.triton import emit
from ssmquant.ops.int4_embedding import int4_embedding
from ssmquant.ops.int4_linear.triton import arrange, linear_int4, norm_linear_int4
from ssmquant.ops.int4_progressive_linear import triton as progressive
from ssmquant.ops.int4_progressive_linear.reference import expand
from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.int8_linear.triton import FEW_TOKENS, linear_int8, norm_linear_int8

if TYPE_CHECKING:
    from ssmquant.families import Shell
    from ssmquant.modules.mixer import Mixer
    from ssmquant.modules.weights import Weight

__all__ = ["Embedding", "Linear", "Network", "Norm", "Unsupported", "network_of"]


class Unsupported(Exception):
    """Why a model has no GPU engine."""


_MAX_NORMED = 1 << 16
"""Rows of a weight whose programs repeat a norm: for those of a larger one, a head, it is launched once."""


@dataclass(frozen=True)
class Norm:
    """RMS norm whose result is quantised.

    Attributes:
        gain: float32 ``[C]``.
        eps: added to the mean square.
        scale: float32 ``[1]``, of the codes.
    """

    gain: Tensor
    eps: float
    scale: Tensor


class Kernels(NamedTuple):
    """The kernels of a weight's format: of a product, and of one with a norm in front where that is faster.

    Attributes:
        op: name of the op, as tiles are kept under.
        linear: writes a product.
        norm_linear: writes the product of a norm.
    """

    op: str
    linear: Callable[..., None]
    norm_linear: Callable[..., None] | None


KERNELS = {
    "int8": Kernels("int8_linear", linear_int8, norm_linear_int8),
    "int4": Kernels("int4_linear", linear_int4, norm_linear_int4),
    "int4-progressive": Kernels(
        "int4_progressive_linear",
        progressive.linear_int4_progressive,
        progressive.norm_linear_int4_progressive,
    ),
}


@dataclass(frozen=True)
class Linear:
    """A linear layer of codes.

    Attributes:
        format: name of the weight's, a key of `KERNELS`.
        stored: the weight as its kernels take it, codes first: int8 ``[N, K]`` with scales ``[1]`` or ``[N]``, or what
            `arrange` of the format's kernels returns.
        bias: float32 ``[N]`` or None.
        out_features: N.
    """

    format: str
    stored: tuple[Tensor, ...]
    bias: Tensor | None
    out_features: int

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, scales included."""
        return sum(tensor.nbytes for tensor in self.stored)

    @property
    def in_features(self) -> int:
        """K."""
        return self.stored[0].shape[1] * (1 if self.format == "int8" else 2)

    def scratch_bytes(self, tokens: int) -> int:
        """Return how many bytes a product of so many tokens takes for a while."""
        if self.format != "int4-progressive":
            return 0
        return progressive.scratch_bytes(tokens, self.out_features, self.in_features)

    def into(self, x: Tensor, x_scale: Tensor, scale_out: Tensor | None, out: Tensor) -> Tensor:
        """Write the layer of codes ``x [M, K]`` to ``out [M, N]`` and return it."""
        KERNELS[self.format].linear(x, x_scale, *self.stored, self.bias, scale_out, out=out)
        return out

    def add_to(self, residual: Tensor, x: Tensor, x_scale: Tensor) -> None:
        """Add the layer of codes ``x [M, K]`` to a float ``residual [M, N]``."""
        KERNELS[self.format].linear(x, x_scale, *self.stored, self.bias, None, residual=residual)

    def of_norm(self, hidden: Tensor, norm: Norm, scale_out: Tensor | None, out: Tensor) -> Tensor:
        """Write the layer of the quantised norm of ``hidden [M, K]`` to ``out`` and return it."""
        run = KERNELS[self.format].norm_linear
        few = len(hidden) <= FEW_TOKENS and self.out_features <= _MAX_NORMED
        if run is not None and few and hidden.shape[1] % 16 == 0:
            run(hidden, norm.gain, norm.eps, norm.scale, *self.stored, self.bias, scale_out, out=out)
            return out
        codes = emit(hidden, None, None, norm.gain, norm.eps, hidden.shape[1], False, norm.scale)
        return self.into(codes, norm.scale, scale_out, out)


@dataclass(frozen=True)
class Embedding:
    """Table of token vectors: int8 with a scale a token, int4 with scales a group, or float16.

    Attributes:
        table: ``[V, d_model]``; int4: uint8 ``[V, d_model / 2]``.
        scale: float32 ``[1]`` or ``[V]``; int4: ``[V, groups]``; None for a float table.
    """

    table: Tensor
    scale: Tensor | None

    def __call__(self, ids: Tensor) -> Tensor:
        """Return float32 rows ``[..., d_model]``."""
        if self.scale is None:
            return functional.embedding(ids, self.table).float()
        gather = int4_embedding if self.table.dtype == torch.uint8 else int8_embedding
        rows: Tensor = gather(ids, self.table, self.scale)
        return rows


@dataclass(frozen=True)
class Network:
    """A whole model.

    Attributes:
        embedding: of the tokens.
        mixers: Mamba-1 or Mamba-2 layers, all of one kind, block norms included.
        final_norm: before the head.
        head: to the logits.
        vocab: number of logits.
        d_model: width of the residual.
    """

    embedding: Embedding
    mixers: object
    final_norm: Norm
    head: Linear
    vocab: int
    d_model: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.embedding.table.device

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[M, vocab]`` of a residual ``[M, d_model]``."""
        out = torch.empty(len(hidden), self.vocab, device=hidden.device)
        return self.head.of_norm(hidden, self.final_norm, None, out)

    def products(self) -> dict[str, list[tuple[int, int]]]:
        """Return the different (N, K) of linear layers by op, those after a norm by ``norm_`` op too."""
        found: dict[str, list[tuple[int, int]]] = {}
        layers = [part for layer in self.mixers.layers for part in vars(layer).values()]  # type: ignore[attr-defined]
        for linear in (*(part for part in layers if isinstance(part, Linear)), self.head):
            kernels, shape = KERNELS[linear.format], (linear.out_features, linear.in_features)
            ops = [kernels.op]
            normed = linear.in_features == self.d_model and linear.out_features <= _MAX_NORMED
            if kernels.norm_linear is not None and normed:
                ops.append(f"norm_{kernels.op}")
            for op in ops:
                shapes = found.setdefault(op, [])
                if shape not in shapes:
                    shapes.append(shape)
        return found


def linear_of(weight: Weight, name: str, bias: Tensor | None) -> Linear:
    """Return a stage's linear layer.

    Raises:
        Unsupported: its weight is neither int8 nor int4 in a form that is symmetric or progressive.
    """
    stored, kind = weight.stored, weight.format.name
    bias = None if bias is None else bias.detach().float()
    if kind == "int8":
        return Linear(kind, (stored["codes"], stored["scale"]), bias, weight.shape[0])
    if kind == "int4":
        return Linear(kind, arrange(stored["packed"], stored["scale"]), bias, weight.shape[0])
    if kind == "int4-progressive":
        packed, grid, scale = (stored[part] for part in ("packed", "grid", "scale"))
        if progressive.unsupported(weight.shape[1], grid.shape[1]):  # then as the int8 weight that it is
            return Linear("int8", (expand(packed, grid), scale), bias, weight.shape[0])
        return Linear(kind, (*progressive.arrange(packed, grid), scale), bias, weight.shape[0])
    raise Unsupported(f"{name} is stored as {kind}; the GPU engine runs {', '.join(KERNELS)}")


def scale_of(mixer: Mixer, name: str) -> Tensor:
    """Return the static scale of an activation site, float32 ``[1]`` or ``[C]``.

    Raises:
        Unsupported: the site is float or finds its scales at run time.
    """
    scale = mixer.site(name).static_scale
    if scale is None:
        raise Unsupported(f"site {name} has no static int8 scale ({mixer.site(name).scheme.short()})")
    return scale.detach().float().contiguous()


def one_scale_of(mixer: Mixer, name: str) -> Tensor:
    """Return the one scale of a site that a product sums over."""
    scale = scale_of(mixer, name)
    if scale.numel() > 1:
        raise Unsupported(f"site {name} has {scale.numel()} scales, and a sum can have one")
    return scale


def written_out(scale: Tensor, channels: int) -> Tensor:
    """Return a scale a channel."""
    return scale.expand(channels).contiguous()


def network_of(shell: Shell) -> Network:
    """Return a shell as the GPU engine takes it.

    Raises:
        Unsupported: it has a stage without codes, or of sizes that no kernel has.
    """
    from ssmquant.runtime.cuda.mamba1 import Mamba1Layers
    from ssmquant.runtime.cuda.mamba2 import Mamba2Layers

    stored = shell.embedding.stored
    table = next((stored[name] for name in ("codes", "packed", "weight") if name in stored), None)
    if table is None:
        raise Unsupported(
            f"embedding.weight is stored as {shell.embedding.format.name}; the GPU engine runs int8, int4 and float"
        )
    embedding = Embedding(table, stored.get("scale"))
    head_scale = shell.head.input.static_scale
    if head_scale is None or head_scale.numel() > 1:
        raise Unsupported("the head's input has no single static int8 scale (choose the recipe's head=int8)")
    head = linear_of(shell.head.linear or shell.embedding, "lm_head.weight", None)
    final = Norm(shell.final_norm.weight.detach().float(), shell.final_norm.eps, head_scale.float())
    layers = Mamba1Layers if shell.family.kind == "mamba1" else Mamba2Layers
    return Network(embedding, layers.of(shell.blocks), final, head, *shell.embedding.shape)
