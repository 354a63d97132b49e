"""Model folders on disk: found, read, checked, written and compared.

A model folder holds config.json beside its tensors (safetensors, or a pickle of tensors) and usually a
tokenizer. This package knows files and tensors, and nothing of families, recipes or plans.

    folder = resolve("state-spaces/mamba2-130m")
    config, tensors = read_config(folder), read_tensors(folder)
    with writing(Path("out"), force=False) as partial:
        write_json(partial / "config.json", config)
        write_tensors(partial, tensors, {"producer": "ssmquant"})
"""

from __future__ import annotations

from ssmquant.files.checking import TensorSpec, check_tensors
from ssmquant.files.digests import combined, compare, digest, digests
from ssmquant.files.json_files import read_config, read_json, write_json
from ssmquant.files.reading import read_tensors
from ssmquant.files.saving import write_tensors
from ssmquant.files.source import resolve
from ssmquant.files.target import refuse_existing, writing

__all__ = [
    "TensorSpec",
    "check_tensors",
    "combined",
    "compare",
    "digest",
    "digests",
    "read_config",
    "read_json",
    "read_tensors",
    "refuse_existing",
    "resolve",
    "write_json",
    "write_tensors",
    "writing",
]
