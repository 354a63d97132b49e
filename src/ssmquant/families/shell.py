"""`Shell`: transformers' model with our stages in place, and its parts by role.

`build` makes one on the meta device from a config and a plan, with empty tensors of the right names, shapes and dtypes;
loading is then filling them. Nothing is ever initialised at random and thrown away.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from ssmquant.errors import ModelError
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

    from transformers import PreTrainedModel

__all__ = ["Block", "Shell", "adopt", "build", "model_sites"]


@dataclass(frozen=True)
class Block:
    """One residual block: ``h + mixer(norm(h))``."""

    norm: RMSNorm
    mixer: Mixer


@dataclass(frozen=True)
class Shell:
    """A transformers causal language model whose stages are ours.

    Attributes:
        model: transformers' model.
        family: its row of the table.
        embedding, blocks, final_norm, head: its parts.
    """

    model: PreTrainedModel
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
    """Return every quantisable tensor of a model, from its transformers config alone."""
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


def adopt(
    model: PreTrainedModel, schemes: Mapping[str, TensorScheme], *, hadamard: bool = False, tied: bool
) -> Shell:
    """Put our stages into a transformers model, in place, and return it as a shell.

    Args:
        model: a model of a known family; its own weights are dropped.
        schemes: scheme by site name; float32 where absent.
        hadamard: whether every mixer transforms y before out_proj.
        tied: whether the head uses the embedding's table.
    """
    config = model.config
    family = family_of(config.model_type, "config.json")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise ModelError(
            f"config.json: hidden_act {config.hidden_act!r} is not supported; the kernels fuse silu"
        )
    dims, eps = family.dims(config), config.layer_norm_epsilon
    backbone = getattr(model, family.backbone)
    embedding = Embedding((config.vocab_size, config.hidden_size), schemes.get("embedding.weight", FLOAT32))
    setattr(backbone, family.embedding, embedding)
    blocks = []
    for index, block in enumerate(getattr(backbone, family.layers)):
        prefix = f"layers.{index}."
        layer = LayerSchemes(
            {name.removeprefix(prefix): s for name, s in schemes.items() if name.startswith(prefix)}, hadamard
        )
        ours = Block(RMSNorm(config.hidden_size, eps), make_mixer(dims, layer, index))
        setattr(block, family.block_norm, ours.norm)
        setattr(block, family.block_mixer, ours.mixer)
        blocks.append(ours)
    final_norm = RMSNorm(config.hidden_size, eps)
    setattr(backbone, family.final_norm, final_norm)
    head = Head(
        config.hidden_size,
        config.vocab_size,
        input_scheme=schemes.get("lm_head.input", FLOAT32),
        weight_scheme=schemes.get("lm_head.weight", FLOAT32),
        tied_to=embedding if tied else None,
    )
    setattr(model, family.head, head)
    # Tying is ours now: transformers would look for parameters that codes do not have.
    model._tied_weights_keys = None  # type: ignore[assignment]
    model.all_tied_weights_keys = {}
    model.config.tie_word_embeddings = False
    return Shell(model, family, embedding, tuple(blocks), final_norm, head)


def build(
    config: Any, schemes: Mapping[str, TensorScheme] | None = None, *, hadamard: bool = False, tied: bool
) -> Shell:
    """Return a shell with empty tensors on the meta device; arguments as for `adopt`."""
    from transformers import AutoModelForCausalLM

    family_of(config.model_type, "config.json")
    config = copy.deepcopy(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        shell = adopt(model, schemes or {}, hadamard=hadamard, tied=tied)
    shell.model.eval()
    return shell
