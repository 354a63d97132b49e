"""Write what bitsandbytes computes on some matrices, for tests/ops/test_outlier_linear.py.

    pip install bitsandbytes
    python scripts/bitsandbytes_golden.py tests/ops/golden/bitsandbytes.safetensors

bitsandbytes (MIT) is the LLM.int8() of its authors. Its wheel takes 125 MB for kernels of many GPUs, so the tests read
its results from a file; this runs its own operations on the CPU. Each case is a layer with float16 weight and input:
``weight``, ``x``, ``bias`` → ``weight_codes``, ``weight_absmax``, ``codes``, ``absmax``, ``outliers``, ``y``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import bitsandbytes  # type: ignore[import-not-found]
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import save_file
from torch import Tensor

THRESHOLD = 6.0
# Tokens, K, N, columns with outliers, share of the tokens that have one there.
CASES = {
    "none": (24, 96, 40, 0, 0.0),
    "few": (24, 96, 40, 3, 0.3),
    "many": (24, 96, 40, 60, 0.1),
    "one-token": (1, 96, 40, 4, 1.0),
}


def layer(tokens: int, k: int, n: int, columns: int, share: float) -> dict[str, Tensor]:
    """Return weight, bias and input of a layer: inputs of columns of unlike size, outliers in some of them."""
    random = torch.Generator().manual_seed(k + 1000 * columns + tokens)
    x = (torch.randn(tokens, k, generator=random) * torch.rand(k, generator=random)).clamp(-5, 5)
    places = torch.randperm(k, generator=random)[:columns]
    hit = torch.rand(tokens, columns, generator=random) < share
    large = 6.0 + 30.0 * torch.rand(tokens, columns, generator=random)
    x[:, places] = torch.where(hit, large * x[:, places].sign(), x[:, places])
    return {
        "x": x.half(),
        "weight": (torch.randn(n, k, generator=random) / k**0.5).half(),
        "bias": torch.randn(n, generator=random).half(),
    }


def computed(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return codes, ranges, outlier columns and result of bitsandbytes."""
    weight_codes, weight_absmax, _ = bnb.int8_vectorwise_quant(weight.clone())
    codes, absmax, outliers = bnb.int8_vectorwise_quant(x.clone(), threshold=THRESHOLD)
    if outliers is None:
        outliers = torch.empty(0, dtype=torch.int64)
    y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        x, codes, weight_codes, absmax, weight_absmax, outliers, bias
    )
    return {
        "weight_codes": weight_codes,
        "weight_absmax": weight_absmax,
        "codes": codes,
        "absmax": absmax,
        "outliers": outliers,
        "y": y,
    }


def main() -> None:
    """Write the file that the command line names."""
    path = Path(sys.argv[1])
    tensors: dict[str, Tensor] = {}
    for name, sizes in CASES.items():
        given = layer(*sizes)
        tensors |= {f"{name}.{key}": value for key, value in (given | computed(**given)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"bitsandbytes": bitsandbytes.__version__, "threshold": str(THRESHOLD)})


if __name__ == "__main__":
    main()
