"""A small set of tensors of every kind that model folders hold."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layers.0.in_proj.weight": torch.randn(6, 4, generator=generator),
        "layers.0.in_proj.codes": torch.randint(-127, 128, (6, 4), generator=generator, dtype=torch.int8),
        "layers.0.norm.weight": torch.randn(4, generator=generator).to(torch.bfloat16),
        "norm_f.weight": torch.randn(4, generator=generator).to(torch.float16),
        "steps": torch.tensor(7),
    }
