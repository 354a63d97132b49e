"""Measures the tiles of the linear layers on this machine's GPU and records the fastest of each shape.

A product is timed as decoding meets it: a CUDA graph of launches over different weights, together larger than
any cache, one after the other. For a device that the package's table does not know, once:

    tune([(10576, 2560), (2560, 5120)], tokens=(1, 4, 16, 64, 512, 2048))
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ssmquant.ops.int4_linear import triton as int4
from ssmquant.ops.int8_linear import triton as int8
from ssmquant.ops.tuning import Tile, bucket, record

__all__ = ["OPS", "Product", "Setup", "candidates", "fastest", "measure", "tune"]

OPS = ("int8_linear", "int4_linear", "norm_int8_linear", "norm_int4_linear")
GROUP_SIZE = 128
_COLD_BYTES = 256 << 20  # of different weights in one measurement: more than L2 caches hold
_SEED = 0


@dataclass(frozen=True)
class Product:
    """``[m, k] x [n, k]`` by one of the `OPS`."""

    op: str
    m: int
    n: int
    k: int

    @property
    def int4(self) -> bool:
        """Whether the weight's codes have four bits."""
        return "int4" in self.op

    @property
    def norm(self) -> bool:
        """Whether the product begins with a norm."""
        return self.op.startswith("norm")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the codes of one weight."""
        return self.n * self.k // (2 if self.int4 else 1)


def candidates(product: Product) -> list[Tile]:
    """Return the tiles that are worth measuring for a product; none if its op does not take so many tokens."""
    m = product.m
    if product.norm:
        if m > int8.MAX_NORM_TOKENS:
            return []
        if product.int4:
            return [
                Tile(0, n, 0, 1, w, s) for n, w, s in ((32, 4, 20), (32, 4, 12), (64, 8, 20), (64, 4, 10))
            ]
        return [
            Tile(0, n, 0, 1, w, s)
            for n, w, s in (
                (4, 4, 4),
                (4, 4, 8),
                (8, 8, 2),
                (8, 8, 4),
                (8, 4, 4),
                (16, 8, 2),
                (4, 8, 8),
                (8, 8, 8),
            )
        ]
    found: list[Tile] = []
    if m <= int8.MAX_NORM_TOKENS:
        if product.int4:
            cuts = (
                (32, 4, 20),
                (8, 1, 20),
                (32, 4, 12),
                (8, 1, 40),
                (32, 4, 40),
                (4, 1, 20),
                (16, 4, 20),
                (16, 2, 20),
            )
            found += [Tile(0, n, 0, 1, w, s) for n, w, s in cuts[: 8 if m == 1 else 3]]
        else:
            rows = ((4, 4, 1), (2, 4, 1), (4, 4, 2), (2, 2, 1), (4, 8, 1), (8, 4, 1), (2, 4, 4), (4, 4, 4))
            found += [Tile(0, n, 0, 1, w, s) for n, w, s in rows[: 8 if m == 1 else 3]]
    if m == 1:
        return found
    block_m = min(max(bucket(m), 16), 128)
    if product.int4:
        shapes = [(block_m, 64, 4, 4), (block_m, 64, 4, 6), (block_m, 128, 8, 4), (block_m, 128, 8, 6)]
        if m >= 128:
            shapes = [(128, 64, 4, 4), (128, 64, 4, 3), (128, 128, 8, 4), (64, 128, 8, 4), (64, 64, 4, 4)]
        return found + [Tile(bm, n, GROUP_SIZE, 1, w, s) for bm, n, w, s in shapes]
    if m <= 64:
        for n, k, w, s, splits in (
            (32, 128, 4, 6, (1, 2)), (64, 128, 4, 6, (1, 2, 4)), (64, 256, 4, 3, (1, 2, 4)), (32, 256, 4, 4, (1, 2, 4)),
            (128, 128, 8, 5, (1, 4)),
        ):  # fmt: skip
            found += [Tile(block_m, n, k, split, w, s) for split in splits]
    elif m <= 512:
        found += [Tile(64, 128, 128, split, 4, 4) for split in (1, 2)]
        found += [Tile(128, 128, 128, split, 8, 4) for split in (1, 2)]
        found += [Tile(128, 64, 128, split, 4, 4) for split in (1, 2)]
        found += [Tile(64, 64, 128, 1, 4, 5), Tile(128, 128, 64, 1, 4, 4)]
    else:
        found += [
            Tile(128, 128, 64, 1, 4, 4), Tile(128, 128, 128, 1, 8, 3), Tile(128, 256, 128, 1, 8, 3),
            Tile(128, 256, 64, 1, 8, 4), Tile(256, 128, 128, 1, 8, 3), Tile(128, 64, 128, 1, 4, 4),
            Tile(64, 256, 128, 1, 8, 3), Tile(128, 128, 64, 1, 4, 5),
        ]  # fmt: skip
    return found


class Setup:
    """Random operands of a product, and launches of it.

    Results are int8 codes; with n < k, as in out_proj, they are added to a float16 residual of zeros.

    Args:
        product: what to compute.
        device: where.
        copies: number of different weights; by default so many that no cache holds them.
    """

    def __init__(self, product: Product, device: torch.device, copies: int | None = None) -> None:
        m, n, k = product.m, product.n, product.k
        if copies is None:
            copies = max(4, -(-_COLD_BYTES // product.weight_bytes))
        generator = torch.Generator(device).manual_seed(_SEED)
        random = partial(torch.randint, generator=generator, device=device, dtype=torch.int8)
        uniform = partial(torch.rand, generator=generator, device=device)
        self.product = product
        self.x = random(-127, 128, (m, k))
        self.x_scale = uniform(1) * 0.01
        self.gain = uniform(k)
        self.hidden = (uniform(m, k) - 0.5).half()
        self.adds = n < k and not product.norm
        self.scale_out = None if self.adds else uniform(n) + 0.1
        self.result = torch.empty(m, n, dtype=torch.float16 if self.adds else torch.int8, device=device)
        self.result.zero_()
        self.weights: list[tuple[Tensor, Tensor]] = []
        for _ in range(copies):
            if product.int4:
                codes = random(-128, 128, (n, k // 2)).view(torch.uint8)
                self.weights.append((codes, uniform(k // GROUP_SIZE, n) * 0.01))
            else:
                self.weights.append((random(-127, 128, (n, k)), uniform(n) * 0.01))

    def launches(self, tile: Tile | None) -> list[Callable[[], None]]:
        """Return one launch for each weight, all into the same result."""
        into = {"residual": self.result} if self.adds else {"out": self.result}
        normed = (self.hidden, self.gain, 1e-5, self.x_scale)
        run: Callable[..., None] = {
            "int8_linear": partial(int8.linear_int8, self.x, self.x_scale),
            "int4_linear": partial(int4.linear_int4, self.x, self.x_scale),
            "norm_int8_linear": partial(int8.norm_linear_int8, *normed),
            "norm_int4_linear": partial(int4.norm_linear_int4, *normed),
        }[self.product.op]
        return [partial(run, *weight, None, self.scale_out, **into, tile=tile) for weight in self.weights]


def measure(calls: Sequence[Callable[[], None]], repeats: int = 20) -> float:
    """Return the microseconds a call, as the median over replays of a CUDA graph of all of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    with torch.cuda.stream(stream):
        graph.replay()
        for event in events[:-1]:
            event.record(stream)
            graph.replay()
        events[-1].record(stream)
    stream.synchronize()
    times = [a.elapsed_time(b) for a, b in pairwise(events)]
    return float(statistics.median(times)) * 1e3 / len(calls)


def fastest(product: Product, device: torch.device) -> dict[Tile, float]:
    """Return the microseconds of each candidate that fits the device, fastest first."""
    from triton.runtime.errors import OutOfResources

    setup = Setup(product, device)
    times: dict[Tile, float] = {}
    for tile in candidates(product):
        try:
            times[tile] = measure(setup.launches(tile))
        except OutOfResources:
            continue
    return dict(sorted(times.items(), key=lambda item: item[1]))


def tune(
    shapes: Iterable[tuple[int, int]],
    tokens: Iterable[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048),
    ops: Iterable[str] = OPS,
    progress: Callable[[Product, Mapping[Tile, float]], None] = lambda product, times: None,
) -> Path | None:
    """Measure products on the current GPU and record the fastest tile of each; return the table's file.

    Args:
        shapes: (N, K) of the weights.
        tokens: values of M, one a bucket.
        ops: names of the ops, of `OPS`.
        progress: called after each product with the times of its candidates.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    path = None
    for n, k in shapes:
        for op in ops:
            best: dict[int, Tile] = {}
            for m in tokens:
                product = Product(op, m, n, k)
                times = fastest(product, device)
                progress(product, times)
                if times:
                    best[bucket(m)] = next(iter(times))
            path = record(name, op, n=n, k=k, tiles=best)
    return path
