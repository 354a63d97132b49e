"""Tiny random models of every family, built once a session: each with gains, biases and dynamics that matter.

folder = saved("mamba2-two-groups")                 # as transformers' save_pretrained writes it
model = float_model("mamba2-two-groups")            # as ssmquant loads it
q = quantised("mamba2-two-groups", "quamba2-w8a8")
"""

from __future__ import annotations

import json
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import ssmquant

#: Largest relative error between two orders of the same float32 sums, through all layers of a model.
PARITY = 1e-5
VOCAB = 257
LETTERS = [chr(0x100 + index) for index in range(VOCAB - 1)]
#: Every size is uncommon: 48 and 96 have Hadamard matrices by Paley's construction, 6 heads are clustered into 4.
_COMMON = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 3, "bos_token_id": None} | {
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_WIDE = _COMMON | {"hidden_size": 256, "num_hidden_layers": 1}
_MAMBA2 = {"expand": 2, "head_dim": 8, "num_heads": 12, "state_size": 16, "chunk_size": 8}
_MAMBA1 = {"state_size": 8, "time_step_rank": 4, "expand": 2}

CONFIGS: dict[str, Any] = {
    "mamba": MambaConfig(**_COMMON, **_MAMBA1),
    "mamba-untied-biased": MambaConfig(**_COMMON, **_MAMBA1, tie_word_embeddings=False, use_bias=True),
    "mamba-no-conv-bias": MambaConfig(**_COMMON, **_MAMBA1, use_conv_bias=False, conv_kernel=3),
    "falcon_mamba": FalconMambaConfig(**_COMMON, **_MAMBA1),
    "falcon_mamba-untied-biased": FalconMambaConfig(
        **_COMMON, **_MAMBA1, tie_word_embeddings=False, use_bias=True
    ),
    "mamba2": Mamba2Config(**_COMMON, **_MAMBA2, n_groups=1, tie_word_embeddings=True),
    "mamba2-two-groups": Mamba2Config(
        **_COMMON, **_MAMBA2, n_groups=2, tie_word_embeddings=True, time_step_limit=(0.05, 0.6)
    ),
    "mamba2-untied-biased": Mamba2Config(
        **_COMMON, **_MAMBA2, n_groups=2, tie_word_embeddings=False, use_bias=True
    ),
    "mamba2-no-conv-bias": Mamba2Config(
        **_COMMON, **_MAMBA2, n_groups=1, tie_word_embeddings=False, use_conv_bias=False, conv_kernel=3
    ),
    # Wide enough for groups of 128 weights, and for 128 outlier channels beside them.
    "mamba-wide": MambaConfig(**_WIDE, **_MAMBA1),
    "mamba2-wide": Mamba2Config(
        **_WIDE, **_MAMBA2 | {"head_dim": 64, "num_heads": 8}, n_groups=2, tie_word_embeddings=True
    ),
}
WIDE = {"mamba1": "mamba-wide", "mamba2": "mamba2-wide"}
MAMBA1 = [name for name in CONFIGS if not name.startswith("mamba2")]
MAMBA2 = [name for name in CONFIGS if name.startswith("mamba2")]

#: Gone with the process.
FOLDER = tempfile.TemporaryDirectory(prefix="ssmquant-tests-")
_fast_tokenizer: Any = PreTrainedTokenizerFast  # whose constructor is untyped


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token a letter, as many as the models have, and an end-of-text token."""
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(["<eos>", *LETTERS])}, []))
    tokenizer.decoder = decoders.Fuse()
    made: PreTrainedTokenizerFast = _fast_tokenizer(tokenizer_object=tokenizer, eos_token="<eos>")
    return made


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Give a model random weights, under which every parameter has an effect on the logits."""
    random = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=random)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = name.rpartition("mixer.")[2]
            if kind == "A_log":
                value = uniform(parameter, math.log(0.5), math.log(16.0))
            elif kind in ("dt_bias", "dt_proj.bias"):
                dt = uniform(parameter, math.log(0.02), math.log(0.8)).exp()
                value = dt + torch.log(-torch.expm1(-dt))  # inverse of softplus
            elif kind == "D":
                value = normal(parameter)
            elif kind == "conv1d.weight":
                value = 0.5 * normal(parameter)
            elif parameter.dim() == 1:  # norms' gains and biases
                value = 0.3 * normal(parameter) + (1.0 if "norm" in name else 0.0)
            else:
                value = normal(parameter) / parameter.shape[1] ** 0.5
                if kind == "in_proj.weight":  # channels of unlike size, as trained models have them
                    value = value * (0.5 * normal(parameter[:, :1])).exp()
                elif kind == "out_proj.weight":  # so that a rounding is not amplified from layer to layer
                    value = 0.5 * value
            parameter.copy_(value)


@cache
def saved(name: str) -> Path:
    """Return the folder of a tiny model, with its tokenizer, as transformers writes it."""
    folder = Path(FOLDER.name) / name
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    randomize(model, seed=len(name))
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def fitting() -> list[tuple[str, str]]:
    """Return every shipped recipe with every wide model that it fits."""
    return [
        (recipe, model)
        for recipe in ssmquant.shipped_recipes()
        for mixer, model in WIDE.items()
        if mixer not in ssmquant.load_recipe(recipe).refuses
    ]


@cache
def texts() -> Path:
    """Return a file of calibration text: 16 documents of 100 random letters."""
    path = Path(FOLDER.name) / "texts.jsonl"
    documents = ["".join(LETTERS[i - 1] for i in row) for row in random_ids(16, 100, seed=11).tolist()]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@cache
def float_model(name: str) -> ssmquant.Model:
    """Return a tiny float model; shared by all tests, none may change it."""
    return ssmquant.load(saved(name))


@cache
def quantised(name: str, recipe: str) -> ssmquant.Model:
    """Return a tiny quantised model; shared by all tests, none may change it."""
    return ssmquant.quantize(
        float_model(name), recipe, calibration=str(texts()), samples=8, seqlen=64, cache=False
    )


def reference(folder: Path) -> PreTrainedModel:
    """Return transformers' own model of a float folder, in float32 whatever the file has."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def random_ids(batch: int, length: int, *, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Return random tokens ``[batch, length]``, none of them the end-of-text token."""
    return torch.randint(1, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
