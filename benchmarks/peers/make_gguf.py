"""Write a random model of a named shape as a GGUF file in 16 bits, for llama.cpp to be measured with.

    pip install gguf
    python benchmarks/peers/make_gguf.py mamba2-130m mamba2-130m-f16.gguf
    llama-quantize mamba2-130m-f16.gguf mamba2-130m-q8_0.gguf Q8_0

Names, shapes and metadata are those of llama.cpp's own converter. Speed does not depend on the weights, so they are
random, of about the size that training starts from: every activation stays finite. The tokenizer is left out.
llama.cpp's own `llama-quantize` makes the quantised files, so that each tensor has the type that its users get.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gguf
import numpy as np
import typer

from ssmquant.bench.shapes import shape_config
from ssmquant.families import family_of
from ssmquant.modules.mamba2 import Mamba2Dims


class Entry(NamedTuple):
    """One tensor: its name, shape (rows first), and how it is filled: a constant, or None for random weights."""

    name: str
    shape: tuple[int, ...]
    value: float | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Matrices are float16, everything else (and the small convolution) float32, as the converter has it."""
        matrix = self.value is None and "conv1d" not in self.name
        return np.dtype(np.float16 if matrix else np.float32)

    def array(self, random: np.random.Generator) -> np.ndarray[Any, Any]:
        """Return the contents."""
        if self.value is not None:
            return np.full(self.shape, self.value, self.dtype)
        weights = random.standard_normal(self.shape, np.float32)
        weights *= 1 / sqrt(self.shape[-1])
        return weights.astype(self.dtype)


def entries(config: Any) -> Iterator[Entry]:
    """Yield the tensors of a model in the order of the file."""
    dims = family_of(config.model_type, "shape").dims(config)
    yield Entry("token_embd.weight", (config.vocab_size, dims.d_model))
    yield Entry("output_norm.weight", (dims.d_model,), 1.0)
    if not config.tie_word_embeddings:
        yield Entry("output.weight", (config.vocab_size, dims.d_model))
    inner = dims.d_inner
    for layer in range(config.num_hidden_layers):
        if isinstance(dims, Mamba2Dims):
            heads, groups = dims.nheads, dims.ngroups
            tensors = (
                Entry("ssm_in.weight", (dims.d_in_proj, dims.d_model)),
                Entry("ssm_conv1d.weight", (dims.conv_dim, dims.d_conv)),
                Entry("ssm_conv1d.bias", (dims.conv_dim,), 0.0),
                Entry("ssm_dt.bias", (heads,), -4.0),
                Entry("ssm_a", (heads, 1), -8.0),
                Entry("ssm_d", (heads, 1), 1.0),
                Entry("ssm_norm.weight", (groups, inner // groups), 1.0),
            )
        else:
            rank, states = dims.dt_rank, dims.d_state
            tensors = (
                Entry("ssm_in.weight", (2 * inner, dims.d_model)),
                Entry("ssm_conv1d.weight", (inner, dims.d_conv)),
                Entry("ssm_conv1d.bias", (inner,), 0.0),
                Entry("ssm_x.weight", (rank + 2 * states, inner)),
                Entry("ssm_dt.weight", (inner, rank)),
                Entry("ssm_dt.bias", (inner,), -4.0),
                Entry("ssm_a", (inner, states), -8.0),
                Entry("ssm_d", (inner,), 1.0),
            )
        ends = Entry("attn_norm.weight", (dims.d_model,), 1.0), Entry("ssm_out.weight", (dims.d_model, inner))
        for entry in (ends[0], *tensors, ends[1]):
            yield entry._replace(name=f"blk.{layer}.{entry.name}")


def write_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what llama.cpp wants to know of the architecture."""
    dims = family_of(config.model_type, "shape").dims(config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(2**20)
    writer.add_embedding_length(dims.d_model)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(dims.d_conv)
    writer.add_ssm_inner_size(dims.d_inner)
    writer.add_ssm_state_size(dims.d_state)
    if isinstance(dims, Mamba2Dims):
        writer.add_ssm_time_step_rank(dims.nheads)
        writer.add_ssm_group_count(dims.ngroups)
    else:
        writer.add_ssm_time_step_rank(dims.dt_rank)
        writer.add_ssm_dt_b_c_rms(False)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)


def main(
    shape: Annotated[str, typer.Argument(help="Named shape, as of `ssmquant bench --shape`.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Write a random model of a named shape as GGUF, a tensor at a time."""
    config = shape_config(shape)
    writer = gguf.GGUFWriter(out, config.model_type)
    write_metadata(writer, config)
    tensors = list(entries(config))
    for entry in tensors:
        size = int(np.prod(entry.shape)) * entry.dtype.itemsize
        writer.add_tensor_info(entry.name, entry.shape, entry.dtype, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for entry in tensors:
        writer.write_tensor_data(entry.array(random))
    writer.close()


if __name__ == "__main__":
    typer.run(main)
