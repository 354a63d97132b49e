"""`ssmquant tune`: measure how this machine's GPU runs a model's linear layers fastest, once, for all later runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ssmquant.cli.console import stdout
from ssmquant.cli.options import QuantisedFolder
from ssmquant.errors import InputError

if TYPE_CHECKING:
    from ssmquant.ops.linear_tuning import Product
    from ssmquant.ops.tuning import Tile

__all__ = ["tune"]


def tune(folder: QuantisedFolder) -> None:
    """Measure the linear layers of a static int8 model on this GPU; what is found is kept in the cache folder."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("tune measures the kernels of an NVIDIA GPU, and PyTorch finds none on this machine")
    import ssmquant
    from ssmquant.ops import linear_tuning
    from ssmquant.ops.tuning import table_file
    from ssmquant.runtime.cuda.network import Unsupported, network_of

    try:
        products = network_of(ssmquant.load(folder).shell).products()
    except Unsupported as reason:
        raise InputError(
            f"tune measures layers of codes, which {folder} has not throughout: {reason}"
        ) from None
    console = stdout()

    def report(product: Product, times: Mapping[Tile, float]) -> None:
        if times:
            what = f"{product.op} {product.n}x{product.k}, {product.m} tokens"
            console.print(f"{what}: {min(times.values()):.1f} µs", markup=False, soft_wrap=True)

    for op, shapes in products.items():
        linear_tuning.tune(shapes, ops=[op], progress=report)
    console.print(f"kept in {table_file()}", markup=False, soft_wrap=True)
