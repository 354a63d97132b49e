"""`Shell`: our stages under the names of transformers' model, and its parts by role.

`build` makes one on the meta device from a config and a plan, with empty tensors of the right names, shapes and dtypes;
loading is then filling them. Nothing is ever initialised at random and thrown away, and transformers is not needed:
its own model is made around the same stages only where somebody asks for it (`adoption`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ssmquant.errors import ModelError
from ssmquant.families.config import Config
from ssmquant.families.forward import make_mixer
from ssmquant.families.table import Family, family_of
from ssmquant.modules.activation import Activation
from ssmquant.modules.head import Head
from ssmquant.modules.mixer import LayerSchemes, Mixer, StateSite
from ssmquant.modules.weights import Embedding, RMSNorm, Weight
from ssmquant.scheme import FLOAT32, TensorScheme
from ssmquant.sites import Site, SiteKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Block", "Shell", "build", "model_sites"]


@dataclass(frozen=True)
class Block:
    """One residual block: ``h + mixer(norm(h))``."""

    norm: RMSNorm
    mixer: Mixer


@dataclass(frozen=True)
class Shell:
    """A causal language model made of our stages.

    Attributes:
        model: holds the stages, under the names that they have in transformers' model; it cannot be called.
        config: its config.
        family: its row of the table.
        embedding, blocks, final_norm, head: its parts.
    """

    model: nn.Module
    config: Config
    family: Family
    embedding: Embedding
    blocks: tuple[Block, ...]
    final_norm: RMSNorm
    head: Head

    @property
    def device(self) -> torch.device:
        """Where the model's tensors are."""
        return self.final_norm.weight.device

    @property
    def tied(self) -> bool:
        """Whether the head's weight is the embedding's."""
        return self.head.linear is None

    def activations(self) -> Iterator[tuple[str, Activation | StateSite]]:
        """Return every activation and state site by name."""
        for index, block in enumerate(self.blocks):
            for name, module in block.mixer.act.items():
                yield f"layers.{index}.{name}", cast(Activation, module)
            yield f"layers.{index}.state", block.mixer.state
        yield "lm_head.input", self.head.input

    def weights(self) -> Iterator[tuple[str, Weight]]:
        """Return every stage with a quantisable weight by its site name; a tied head has none."""
        yield "embedding.weight", self.embedding
        for index, block in enumerate(self.blocks):
            for name, module in block.mixer.named_children():
                if isinstance(module, Weight):
                    yield f"layers.{index}.{name}.weight", module
        if self.head.linear is not None:
            yield "lm_head.weight", self.head.linear


def model_sites(config: Any) -> tuple[Site, ...]:
    """Return every quantisable tensor of a model, from its config alone."""
    family = family_of(config.model_type, "config.json")
    d_model, vocab = config.hidden_size, config.vocab_size
    table = {"vocab": vocab, "d_model": d_model}
    local = family.sites(family.dims(config))
    return (
        Site("embedding.weight", SiteKind.WEIGHT, table, "checkpoint", ("embedding",)),
        *(site.within(f"layers.{i}") for i in range(config.num_hidden_layers) for site in local),
        Site("lm_head.input", SiteKind.ACTIVATION, {"d_model": d_model}, "final_norm", ("lm_head",)),
        Site("lm_head.weight", SiteKind.WEIGHT, table, "checkpoint", ("lm_head",)),
    )


def build(
    config: Config, schemes: Mapping[str, TensorScheme] | None = None, *, hadamard: bool = False, tied: bool
) -> Shell:
    """Return a shell with empty tensors on the meta device.

    Args:
        config: of the model.
        schemes: scheme by site name; float32 where absent.
        hadamard: whether every mixer transforms y before out_proj.
        tied: whether the head uses the embedding's table.

    Raises:
        ModelError: the config asks for what our stages do not compute.
    """
    family, schemes = family_of(config.model_type, "config.json"), schemes or {}
    if config.hidden_act != "silu":
        raise ModelError(
            f"config.json: hidden_act {config.hidden_act!r} is not supported; the kernels fuse silu"
        )
    # Tying is ours: transformers would look for parameters that codes do not have.
    config = Config(**config.to_dict() | {"tie_word_embeddings": False})
    dims, d_model, eps = family.dims(config), config.hidden_size, config.layer_norm_epsilon
    with torch.device("meta"):
        embedding = Embedding((config.vocab_size, d_model), schemes.get("embedding.weight", FLOAT32))
        blocks = []
        for index in range(config.num_hidden_layers):
            prefix = f"layers.{index}."
            layer = {name.removeprefix(prefix): s for name, s in schemes.items() if name.startswith(prefix)}
            mixer = make_mixer(dims, LayerSchemes(layer, hadamard), index)
            blocks.append(Block(RMSNorm(d_model, eps), mixer))
        final_norm = RMSNorm(d_model, eps)
        head = Head(
            d_model,
            config.vocab_size,
            input_scheme=schemes.get("lm_head.input", FLOAT32),
            weight_scheme=schemes.get("lm_head.weight", FLOAT32),
            tied_to=embedding if tied else None,
        )
    layers = [_holder({family.block_norm: block.norm, family.block_mixer: block.mixer}) for block in blocks]
    backbone = _holder(
        {family.embedding: embedding, family.layers: nn.ModuleList(layers), family.final_norm: final_norm}
    )
    model = _holder({family.backbone: backbone, family.head: head}).eval()
    return Shell(model, config, family, embedding, tuple(blocks), final_norm, head)


def _holder(children: Mapping[str, nn.Module]) -> nn.Module:
    """Return a module that holds others under these names and does nothing."""
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder
