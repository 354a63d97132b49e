"""Checkpoints of the original mamba_ssm code (state-spaces/mamba-130m, mamba2-130m …) in transformers' terms.

Such a folder holds a config.json without `model_type` and a pytorch_model.bin; the layers are those of
transformers' Mamba and Mamba-2, under other option names and one other tensor name. What transformers'
classes cannot compute (attention layers, LayerNorm, D for each channel …) is refused here, all of it in one
message. Hybrids are left out.

    if is_original(config):
        model_type, options, tensors = convert(config, tensors)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ssmquant.errors import ModelError, nearest
from ssmquant.families.values import FLAG, LIMITS, RANK, WHOLE, Value
from ssmquant.files.digests import digest

__all__ = ["TOKENIZER", "convert", "convert_config", "convert_tensors", "is_original"]

#: The tokenizer of every published state-spaces model; their folders hold none.
TOKENIZER = "EleutherAI/gpt-neox-20b"

_NEOX_VOCABULARY = (50277, 50280, 50288)  # as it is, and padded to a multiple of 8 or 16
_NEOX_END = 0  # <|endoftext|>, which also begins and pads


class _Option(NamedTuple):
    """An option that both sides have: transformers' name, mamba_ssm's default, its legal values."""

    name: str
    default: Any
    value: Value


class _Layer(NamedTuple):
    """One value of ssm_cfg's `layer`.

    Attributes:
        model_type: of transformers.
        options: that carry over, by mamba_ssm's name.
        required: that transformers' class computes in one way only: the values that ask for it.
        derived: from the options of both sides to what transformers wants besides.
    """

    model_type: str
    options: Mapping[str, _Option]
    required: Mapping[str, tuple[Any, ...]]
    derived: Callable[[dict[str, Any]], dict[str, Any]]


def _derive_mamba1(options: dict[str, Any]) -> dict[str, Any]:
    rank = options["time_step_rank"]
    return {"time_step_rank": math.ceil(options["hidden_size"] / 16) if rank == "auto" else rank}


def _derive_mamba2(options: dict[str, Any]) -> dict[str, Any]:
    d_inner, headdim = options["expand"] * options["hidden_size"], options["head_dim"]
    nheads, rest = divmod(d_inner, headdim)
    if rest or nheads % options["n_groups"]:
        raise ModelError(
            f"original config: expand * d_model = {d_inner} must be whole heads of headdim {headdim}, in "
            f"ngroups {options['n_groups']} equal groups; mamba_ssm cannot build this model: mend config.json"
        )
    return {"num_heads": nheads, "time_step_limit": tuple(float(end) for end in options["time_step_limit"])}


_SHARED_OPTIONS = {
    "d_conv": _Option("conv_kernel", 4, WHOLE),
    "expand": _Option("expand", 2, WHOLE),
    "bias": _Option("use_bias", False, FLAG),
    "conv_bias": _Option("use_conv_bias", True, FLAG),
}
# Defaults are those of mamba_ssm's modules/mamba_simple.py and modules/mamba2.py.
_LAYERS = {
    "Mamba1": _Layer(
        model_type="mamba",
        options={
            **_SHARED_OPTIONS,
            "d_state": _Option("state_size", 16, WHOLE),
            "dt_rank": _Option("time_step_rank", "auto", RANK),
        },
        required={},
        derived=_derive_mamba1,
    ),
    "Mamba2": _Layer(
        model_type="mamba2",
        options={
            **_SHARED_OPTIONS,
            "d_state": _Option("state_size", 128, WHOLE),
            "headdim": _Option("head_dim", 64, WHOLE),
            "ngroups": _Option("n_groups", 1, WHOLE),
            "chunk_size": _Option("chunk_size", 256, WHOLE),
            "dt_limit": _Option("time_step_limit", (0.0, math.inf), LIMITS),
        },
        required={"D_has_hdim": (False,), "rmsnorm": (True,), "norm_before_gate": (False,), "d_ssm": (None,)},
        derived=_derive_mamba2,
    ),
}
# These choose how weights start or which code runs; the function computed is the same.
_WITHOUT_EFFECT = frozenset(
    {"A_init_range", "conv_init", "dt_init", "dt_init_floor", "dt_max", "dt_min", "dt_scale"}
    | {"process_group", "sequence_parallel", "use_fast_path", "use_mem_eff_path"}
)

_TOP_OPTIONS = {
    "d_model": _Option("hidden_size", None, WHOLE),
    "n_layer": _Option("num_hidden_layers", None, WHOLE),
    "vocab_size": _Option("vocab_size", 50277, WHOLE),
    "residual_in_fp32": _Option("residual_in_fp32", True, FLAG),
    "tie_embeddings": _Option("tie_word_embeddings", True, FLAG),
}
_TOP_REQUIRED: dict[str, tuple[Any, ...]] = {
    "d_intermediate": (0,),
    "attn_layer_idx": ([], None),
    "rms_norm": (True,),
}
# attn_cfg serves the layers of attn_layer_idx, of which there are none. The second line is notes of other tools.
_TOP_WITHOUT_EFFECT = frozenset(
    {"attn_cfg", "fused_add_norm"}
    | {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
)
_PAD_MULTIPLE = "pad_vocab_size_multiple"
_PAD_MULTIPLE_DEFAULT = 8

# Fixed in mamba_ssm's code. transformers rescales out_proj by 1/sqrt(n_layer) when rescale_prenorm_residual
# is true, as mamba_ssm does at the start of training: the weights in a checkpoint have that behind them.
_FIXED = {"layer_norm_epsilon": 1e-5, "hidden_act": "silu", "rescale_prenorm_residual": False}

_EMBEDDING, _EMBEDDING_THERE = "backbone.embedding.weight", "backbone.embeddings.weight"
_HEAD = "lm_head.weight"


def is_original(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is one of mamba_ssm (d_model and n_layer, no model_type)."""
    return "d_model" in config and "n_layer" in config and "model_type" not in config


def convert_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Translate mamba_ssm's configuration.

    Args:
        config: the content of config.json, for which `is_original` holds.

    Returns:
        transformers' model_type ("mamba" or "mamba2") and the keyword arguments of its config class;
        vocab_size is padded to a multiple of pad_vocab_size_multiple, as the embedding in the file is.

    Raises:
        ModelError: an option is unknown, of the wrong kind, or asks for what transformers' class does not
            compute; every such option is named.
    """
    ssm = config.get("ssm_cfg") or {}
    if not isinstance(ssm, Mapping):
        raise ModelError(f"original config: asked for an object in ssm_cfg, found {ssm!r}; mend config.json")
    kind = ssm.get("layer", "Mamba1")
    if not isinstance(kind, str) or kind not in _LAYERS:
        raise ModelError(f"original config: no such ssm_cfg layer as {kind!r}; {nearest(str(kind), _LAYERS)}")
    layer = _LAYERS[kind]
    top = {key: value for key, value in config.items() if key not in ("ssm_cfg", _PAD_MULTIPLE)}
    inner = {key: value for key, value in ssm.items() if key != "layer"}
    multiple = config.get(_PAD_MULTIPLE, _PAD_MULTIPLE_DEFAULT)
    problems = [
        *_problems("", top, _TOP_OPTIONS, _TOP_REQUIRED, _TOP_WITHOUT_EFFECT),
        *_problems("ssm_cfg ", inner, layer.options, layer.required, _WITHOUT_EFFECT),
    ]
    if not WHOLE.legal(multiple):
        problems.append(f"{_PAD_MULTIPLE} must be {WHOLE.kind}, found {multiple!r}")
    if problems:
        raise ModelError(
            f"original config: a {kind} model with these options cannot be loaded:\n  "
            + "\n  ".join(problems)
            + "\nconvert the model to a transformers folder of a family that has them, if there is one"
        )
    options = {**_FIXED, **_translated(top, _TOP_OPTIONS), **_translated(inner, layer.options)}
    end = _NEOX_END if options["vocab_size"] in _NEOX_VOCABULARY else None
    return layer.model_type, {
        **options,
        **layer.derived(options),
        "vocab_size": math.ceil(options["vocab_size"] / multiple) * multiple,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end),
    }


def convert_tensors(
    options: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename mamba_ssm's tensors to transformers'; no value changes.

    Args:
        options: what `convert_config` returned.
        tensors: as read; `backbone.embedding.weight` is [vocab_size padded, d_model].

    Returns:
        The tensors by transformers' names, without lm_head.weight where it is the embedding.

    Raises:
        ModelError: the embedding is missing or of another shape, or the head is not the embedding though the
            config ties them.
    """
    embedding = tensors.get(_EMBEDDING)
    if embedding is None:
        raise ModelError(
            f"original model: asked for the tensor {_EMBEDDING}, found {len(tensors)} others; "
            f"{nearest(_EMBEDDING, list(tensors)[:20])}"
        )
    shape = (options["vocab_size"], options["hidden_size"])
    if tuple(embedding.shape) != shape:
        raise ModelError(
            f"original model: {_EMBEDDING} must be {list(shape)} (vocab_size padded by {_PAD_MULTIPLE}, "
            f"d_model), found {list(embedding.shape)}; take config.json and tensors of the same model"
        )
    renamed = {_EMBEDDING_THERE if name == _EMBEDDING else name: tensor for name, tensor in tensors.items()}
    head = renamed.pop(_HEAD, None) if options["tie_word_embeddings"] else None
    if head is not None and digest(head) != digest(embedding):
        raise ModelError(
            f"original model: tie_embeddings is true, but {_HEAD} differs from {_EMBEDDING}; if the model "
            "was trained so, set tie_embeddings to false in config.json"
        )
    return renamed


def convert(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Translate an original model: `convert_config` and `convert_tensors` in one.

    Args:
        config: the content of config.json.
        tensors: as read from the folder.

    Returns:
        transformers' model_type, the keyword arguments of its config class, and the tensors by its names.

    Raises:
        ModelError: as the two raise.
    """
    model_type, options = convert_config(config)
    return model_type, options, convert_tensors(options, tensors)


def _problems(
    where: str,
    given: Mapping[str, Any],
    options: Mapping[str, _Option],
    required: Mapping[str, tuple[Any, ...]],
    without_effect: frozenset[str],
) -> list[str]:
    """Return a line for each given option that is unknown, of the wrong kind or not representable."""
    lines = []
    for key, value in given.items():
        if key in options:
            if not options[key].value.legal(value):
                lines.append(f"{where}{key} must be {options[key].value.kind}, found {value!r}")
        elif key in required:
            if value not in required[key]:
                lines.append(f"{where}{key} is {value!r}; only {required[key][0]!r} can be represented")
        elif key not in without_effect:
            lines.append(f"{where}{key} is not an option known here; {nearest(key, {*options, *required})}")
    return lines


def _translated(given: Mapping[str, Any], options: Mapping[str, _Option]) -> dict[str, Any]:
    return {option.name: given.get(key, option.default) for key, option in options.items()}
