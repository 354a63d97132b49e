"""Registers our quantised folders with transformers' ``AutoModelForCausalLM.from_pretrained``.

Without that import transformers knows no method ``ssmquant``; it warns "Unknown quantization type, got
ssmquant" and then fails on, or initialises at random, every tensor that it expects and does not find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ssmquant.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel

__all__ = ["SsmquantConfig", "SsmquantHfQuantizer"]

_METHOD = "ssmquant"


@register_quantization_config(_METHOD)
class SsmquantConfig(QuantizationConfigMixin):
    """The ``quantization_config`` entry of a quantised folder, as transformers carries it.

    Args:
        entries: what the folder's config.json has.
    """

    def __init__(self, **entries: Any) -> None:
        self.quant_method = _METHOD  # type: ignore[assignment]
        self.entries = {key: value for key, value in entries.items() if key != "quant_method"}

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it is in config.json."""
        return {"quant_method": _METHOD, **self.entries}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the whole entry: it has no defaults."""
        return self.to_dict()


@register_quantizer(_METHOD)
class SsmquantHfQuantizer(HfQuantizer):
    """Puts our stages into transformers' empty model, which then fills them from the folder."""

    requires_calibration = True
    quantization_config: SsmquantConfig

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32: floats between stages are float32 whatever was asked for."""
        import torch

        return torch.float32

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        from ssmquant.checkpoint import check_version
        from ssmquant.families import adopt, build, model_config
        from ssmquant.planning import Plan

        entries, folder = self.quantization_config.entries, model.config.name_or_path or "config.json"
        check_version(entries, folder)
        config = model_config(model.config.to_dict(), folder)
        plan = Plan.from_json(entries.get("plan") or {}, config)
        adopt(model, build(config, plan.schemes, hadamard=plan.hadamard, tied=plan.tied))
        if checkpoint_files is not None:
            _check_complete(model, checkpoint_files, folder)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        model.eval()
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Return False: ``Model.save`` writes folders, with digests and golden logits."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False


def _check_complete(model: PreTrainedModel, files: Sequence[str], folder: str) -> None:
    """Raise unless the files hold every tensor: transformers would fill one that is missing with what memory holds."""
    found: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found.update(opened.keys())
    expected = model.state_dict().keys()
    if missing := sorted(expected - found):
        raise CheckpointError(
            f"{folder}: {len(expected)} tensors asked, {len(missing)} of them not in the folder: "
            f"{', '.join(missing[:8])}; take config.json and the tensors from the same save, or quantise again"
        )
