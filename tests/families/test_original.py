from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from ssmquant.errors import ModelError
from ssmquant.families.original import convert, convert_config, is_original
from ssmquant.files import read_config, read_tensors

Tensors = dict[str, torch.Tensor]
MODELS: dict[str, type[PreTrainedModel]] = {"mamba": MambaForCausalLM, "mamba2": Mamba2ForCausalLM}

#: state-spaces/mamba-130m and mamba2-130m, as published.
MAMBA_130M = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
MAMBA2_130M = {
    "d_model": 768,
    "d_intermediate": 0,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}

TINY = {"d_model": 32, "n_layer": 3, "vocab_size": 61}  # 61 is padded to 64
SMALL: dict[str, dict[str, Any]] = {
    "defaults of Mamba1": {**TINY},
    "Mamba1": {
        **TINY,
        "ssm_cfg": {"layer": "Mamba1", "d_state": 4, "d_conv": 3, "expand": 3, "dt_rank": 5, "bias": True},
        "residual_in_fp32": False,
    },
    "defaults of Mamba2": {**TINY, "ssm_cfg": {"layer": "Mamba2"}},
    "Mamba2": {
        **TINY,
        "ssm_cfg": {
            **{"layer": "Mamba2", "d_state": 8, "d_conv": 3, "expand": 3, "headdim": 8, "ngroups": 2},
            **{"chunk_size": 16, "dt_limit": [0.01, 0.5], "conv_bias": False, "D_has_hdim": False},
        },
        "tie_embeddings": False,
    },
}


def source_model(config: dict[str, Any]) -> PreTrainedModel:
    """A random transformers model of the sizes that `config` says, built without the code under test."""
    ssm = config.get("ssm_cfg", {})
    shared = {
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layer"],
        "vocab_size": 64,
        "conv_kernel": ssm.get("d_conv", 4),
        "expand": ssm.get("expand", 2),
        "use_bias": ssm.get("bias", False),
        "use_conv_bias": ssm.get("conv_bias", True),
        "residual_in_fp32": config.get("residual_in_fp32", True),
        "tie_word_embeddings": config.get("tie_embeddings", True),
    }
    torch.manual_seed(0)
    if ssm.get("layer", "Mamba1") == "Mamba1":
        shared |= {"state_size": ssm.get("d_state", 16), "time_step_rank": ssm.get("dt_rank", 2)}
        model: PreTrainedModel = MambaForCausalLM(MambaConfig(**shared))
    else:
        headdim = ssm.get("headdim", 64)
        shared |= {
            "state_size": ssm.get("d_state", 128),
            "head_dim": headdim,
            "num_heads": config["d_model"] * shared["expand"] // headdim,
            "n_groups": ssm.get("ngroups", 1),
            "chunk_size": ssm.get("chunk_size", 256),
            "time_step_limit": tuple(ssm.get("dt_limit", (0.0, math.inf))),
        }
        model = Mamba2ForCausalLM(Mamba2Config(**shared))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no norm weight of 1, no bias of 0
    model.eval()  # type: ignore[no-untyped-call]
    return model


def write_original(folder: Path, config: dict[str, Any], model: PreTrainedModel) -> None:
    names = {"backbone.embeddings.weight": "backbone.embedding.weight"}
    state = {names.get(name, name): tensor for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))


def build(model_type: str, options: dict[str, Any], tensors: Tensors) -> PreTrainedModel:
    model = MODELS[model_type](AutoConfig.for_model(model_type, **options))
    left = model.load_state_dict(tensors, strict=False)
    assert left.unexpected_keys == []
    assert left.missing_keys == (["lm_head.weight"] if options["tie_word_embeddings"] else [])
    model.eval()  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize("name", SMALL)
def test_an_original_folder_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    source = source_model(SMALL[name])
    write_original(tmp_path, SMALL[name], source)
    config = read_config(tmp_path)
    assert is_original(config)
    model_type, options, tensors = convert(config, read_tensors(tmp_path))
    model = build(model_type, options, tensors)
    ids = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, source(ids).logits)


@pytest.mark.parametrize("name", SMALL)
def test_the_saved_model_loads_unchanged(tmp_path: Path, name: str) -> None:
    """transformers divides out_proj by sqrt(n_layer) on loading when rescale_prenorm_residual is true."""
    source = source_model(SMALL[name])
    write_original(tmp_path, SMALL[name], source)
    model_type, options, tensors = convert(read_config(tmp_path), read_tensors(tmp_path))
    build(model_type, options, tensors).save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())


def test_published_configs() -> None:
    model_type, options = convert_config(MAMBA_130M)
    config = AutoConfig.for_model(model_type, **options)
    assert (model_type, config.vocab_size, config.time_step_rank, config.state_size) == (
        "mamba",
        50280,
        48,
        16,
    )
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (0, 0, 0)
    model_type, options = convert_config(MAMBA2_130M)
    config = AutoConfig.for_model(model_type, **options)
    assert (model_type, config.vocab_size, config.num_heads, config.n_groups) == ("mamba2", 50288, 24, 1)
    assert (config.state_size, config.head_dim, config.chunk_size) == (128, 64, 256)
    assert tuple(config.time_step_limit) == (0.0, math.inf)
    assert config.tie_word_embeddings is True
    assert config.rescale_prenorm_residual is False
    assert config.eos_token_id == 0


def test_the_end_of_text_of_another_vocabulary_is_not_guessed() -> None:
    assert convert_config(TINY)[1]["eos_token_id"] is None


def test_which_configs_are_original() -> None:
    assert is_original(MAMBA2_130M)
    assert not is_original({"model_type": "mamba", "d_model": 768, "n_layer": 24})
    assert not is_original(MambaConfig().to_dict())


@pytest.mark.parametrize(
    ("top", "ssm", "said"),
    [
        ({"attn_layer_idx": [3]}, {}, r"attn_layer_idx is \[3\]; only \[\] can be represented"),
        ({"d_intermediate": 64}, {}, "d_intermediate is 64; only 0 can"),
        ({"rms_norm": False}, {}, "rms_norm is False; only True can"),
        ({}, {"D_has_hdim": True}, "ssm_cfg D_has_hdim is True; only False can"),
        ({}, {"norm_before_gate": True}, "ssm_cfg norm_before_gate is True; only False can"),
        ({}, {"rmsnorm": False}, "ssm_cfg rmsnorm is False; only True can"),
        ({}, {"d_ssm": 16}, "ssm_cfg d_ssm is 16; only None can"),
        ({}, {"layer": "Mamba3"}, "no such ssm_cfg layer as 'Mamba3'; did you mean 'Mamba"),
        ({}, {"layer": ["Mamba2"]}, "no such ssm_cfg layer as"),
        ({}, {"head_dim": 8}, "head_dim is not an option known here; did you mean 'headdim'"),
        ({}, {"d_state": "128"}, "d_state must be a whole number above 0, found '128'"),
        ({}, {"d_conv": True}, "d_conv must be a whole number above 0, found True"),
        ({}, {"expand": 1.5}, "expand must be a whole number above 0, found 1.5"),
        ({}, {"bias": 0}, "bias must be true or false, found 0"),
        ({}, {"dt_limit": [0.1]}, r"dt_limit must be two numbers, found \[0\.1\]"),
        ({}, {"layer": "Mamba1", "dt_rank": "all"}, 'dt_rank must be "auto" or a whole number above 0'),
        ({}, {"layer": "Mamba1", "headdim": 8}, "headdim is not an option known here"),
        ({"d_model": 0}, {}, "d_model must be a whole number above 0, found 0"),
        ({"pad_vocab_size_multiple": 0}, {}, "pad_vocab_size_multiple must be a whole number above 0"),
        ({"bidirectional": True}, {}, "bidirectional is not an option known here"),
        ({}, {"headdim": 48}, "expand \\* d_model = 64 must be whole heads of headdim 48"),
        ({}, {"headdim": 32, "ngroups": 3}, "in ngroups 3 equal groups"),
        ({"ssm_cfg": [1]}, None, r"asked for an object in ssm_cfg, found \[1\]"),
    ],
)
def test_what_cannot_be_represented_is_refused(
    top: dict[str, Any], ssm: dict[str, Any] | None, said: str
) -> None:
    config = {**TINY, **top}
    if ssm is not None:
        config["ssm_cfg"] = {"layer": "Mamba2", **ssm}
    with pytest.raises(ModelError, match=said):
        convert_config(config)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ModelError, match=r"(?s)rms_norm is False.*d_inner is not.*norm_before_gate is True"):
        convert_config(
            {
                **TINY,
                "rms_norm": False,
                "ssm_cfg": {"layer": "Mamba2", "d_inner": 1, "norm_before_gate": True},
            }
        )


def test_options_without_effect_are_passed_over() -> None:
    ssm = {"layer": "Mamba2", "dt_min": 0.01, "A_init_range": [1, 8], "use_mem_eff_path": False}
    plain = convert_config({**TINY, "ssm_cfg": {"layer": "Mamba2"}})
    assert (
        convert_config({**TINY, "fused_add_norm": False, "torch_dtype": "float16", "ssm_cfg": ssm}) == plain
    )


@pytest.fixture
def embedding() -> Tensors:
    return {"backbone.embedding.weight": torch.randn(64, 32)}


def test_the_embedding_must_have_the_padded_size(embedding: Tensors) -> None:
    embedding["backbone.embedding.weight"] = embedding["backbone.embedding.weight"][:61]
    with pytest.raises(ModelError, match=r"must be \[64, 32\] .* found \[61, 32\]"):
        convert(TINY, embedding)


def test_the_embedding_must_be_there(embedding: Tensors) -> None:
    embedding = {f"module.{name}": tensor for name, tensor in embedding.items()}
    with pytest.raises(ModelError, match=r"did you mean 'module\.backbone\.embedding\.weight'"):
        convert(TINY, embedding)


def test_a_tied_head_is_the_embedding(embedding: Tensors) -> None:
    head = embedding["backbone.embedding.weight"].clone()
    assert "lm_head.weight" not in convert(TINY, embedding | {"lm_head.weight": head})[2]
    head[3, 5] += 1
    with pytest.raises(ModelError, match=r"tie_embeddings is true, but lm_head\.weight differs"):
        convert(TINY, embedding | {"lm_head.weight": head})
    untied = convert(TINY | {"tie_embeddings": False}, embedding | {"lm_head.weight": head})[2]
    assert torch.equal(untied["lm_head.weight"], head)
