"""Measures the tiles of the linear layers on this machine's GPU and records the fastest of each shape.

A product is timed as decoding meets it: a CUDA graph of launches over different weights, together larger than
any cache, one after the other. For a device that the package's table does not know, once:

    tune([(10576, 2560), (2560, 5120)], tokens=(1, 4, 16, 64, 512, 2048))
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ssmquant.ops.int4_linear import triton as int4
from ssmquant.ops.int4_linear.reference import int4_linear
from ssmquant.ops.int4_progressive_linear import triton as progressive
from ssmquant.ops.int4_progressive_linear.reference import int4_progressive_linear, join_grid
from ssmquant.ops.int8_linear import triton as int8
from ssmquant.ops.int8_linear.reference import int8_linear
from ssmquant.ops.rms_norm.reference import rms_norm
from ssmquant.ops.tuning import Tile, bucket, record

__all__ = [
    "KINDS",
    "OPS",
    "Kind",
    "Product",
    "Setup",
    "candidates",
    "fastest",
    "measure",
    "random_weight",
    "tune",
]


@dataclass(frozen=True)
class Kind:
    """A linear op.

    Attributes:
        linear: the kernels.
        norm_linear: the kernels with a norm in front, if there are any.
        reference: the op's.
        arrange: from the checkpoint's tensors to what the kernels take.
        group_size: codes that share a scale or grid, 0 if a row has one.
        weight_bits: bits a weight, scales of groups included.
    """

    linear: Callable[..., None]
    norm_linear: Callable[..., None] | None
    reference: Callable[..., Tensor]
    arrange: Callable[..., tuple[Tensor, ...]]
    group_size: int
    weight_bits: float


def _as_is(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return codes, scale


def _arrange_progressive(packed: Tensor, grid: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return *progressive.arrange(packed, grid), scale


KINDS = {
    "int8_linear": Kind(int8.linear_int8, int8.norm_linear_int8, int8_linear, _as_is, 0, 8.0),
    "int4_linear": Kind(int4.linear_int4, int4.norm_linear_int4, int4_linear, int4.arrange, 128, 4.25),
    "int4_progressive_linear": Kind(
        progressive.linear_int4_progressive, progressive.norm_linear_int4_progressive, int4_progressive_linear,
        _arrange_progressive, 32, 4.25,
    ),
}  # fmt: skip
OPS = (*KINDS, *(f"norm_{name}" for name, kind in KINDS.items() if kind.norm_linear))
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
    def kind(self) -> Kind:
        """What is computed, after a norm or not."""
        return KINDS[self.op.removeprefix("norm_")]

    @property
    def norm(self) -> bool:
        """Whether the product begins with a norm."""
        return self.op.startswith("norm")

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight, scales of groups included."""
        return int(self.n * self.k * self.kind.weight_bits / 8)

    @property
    def taken(self) -> bool:
        """Whether the op takes so many tokens."""
        return not self.norm or self.m <= int8.MAX_NORM_TOKENS


def candidates(product: Product) -> list[Tile]:
    """Return the tiles that are worth measuring for a product; none where there is no choice."""
    if not product.taken:
        return []
    name = product.op.removeprefix("norm_")
    few = _FEW_AFTER_NORM if product.norm else _FEW
    found = []
    if product.m <= int8.MAX_NORM_TOKENS:
        cuts = few[name] if product.m == 1 or product.norm else few[name][:3]
        found += [Tile(0, n, 0, 1, warps, stages) for n, warps, stages in cuts]
    if product.norm or product.m == 1:
        return found
    return found + list(_MORE[name](product.m, product.n, product.k))


#: (block_n, warps, stages) of a token or two.
_FEW = {
    "int8_linear": ((4, 4, 1), (4, 4, 2), (4, 4, 4), (8, 8, 1), (8, 4, 1), (8, 4, 2), (2, 2, 2)),
    "int4_linear": (
        (32, 4, 20), (8, 1, 20), (32, 4, 12), (8, 1, 40), (32, 4, 40), (4, 1, 20), (16, 4, 20), (16, 2, 20)
    ),
    "int4_progressive_linear": ((8, 4, 1), (4, 4, 1), (4, 4, 2), (8, 4, 2), (4, 4, 4), (8, 8, 2), (4, 2, 1)),
}  # fmt: skip
_FEW_AFTER_NORM = {
    "int8_linear": ((4, 4, 4), (4, 4, 6), (4, 4, 8), (4, 4, 10), (8, 8, 4), (8, 4, 4)),
    "int4_linear": ((32, 4, 20), (32, 4, 12), (64, 8, 20), (64, 4, 10)),
    "int4_progressive_linear": ((8, 4, 1), (8, 4, 2), (4, 4, 2), (4, 4, 4), (8, 8, 2)),
}  # fmt: skip


def _more_int8(m: int, n: int, k: int) -> Iterator[Tile]:
    if m <= 64:
        for tile_n, tile_k, warps, stages, splits in (
            (32, 128, 4, 6, (1, 2)), (64, 128, 4, 6, (1, 2, 4)), (64, 256, 4, 3, (1, 2, 4)), (32, 256, 4, 4, (1, 2, 4)),
            (128, 128, 8, 5, (1, 4)),
        ):  # fmt: skip
            for split in splits:
                yield Tile(max(bucket(m), 16), tile_n, tile_k, split, warps, stages)
    elif m <= 512:
        for split in (1, 2):
            yield Tile(64, 128, 128, split, 4, 4)
            yield Tile(128, 128, 128, split, 8, 4)
            yield Tile(128, 64, 128, split, 4, 4)
        yield Tile(64, 64, 128, 1, 4, 5)
        yield Tile(128, 128, 64, 1, 4, 4)
    else:
        yield Tile(128, 128, 64, 1, 4, 4)
        yield Tile(128, 128, 128, 1, 8, 3)
        yield Tile(128, 256, 128, 1, 8, 3)
        yield Tile(128, 256, 64, 1, 8, 4)
        yield Tile(256, 128, 128, 1, 8, 3)
        yield Tile(128, 64, 128, 1, 4, 4)
        yield Tile(64, 256, 128, 1, 8, 3)
        yield Tile(128, 128, 64, 1, 4, 5)


def _more_int4(m: int, n: int, k: int) -> Iterator[Tile]:
    block_m = min(max(bucket(m), 16), 128)
    shapes = [(block_m, 64, 4, 4), (block_m, 64, 4, 6), (block_m, 128, 8, 4), (block_m, 128, 8, 6)]
    if m >= 128:
        shapes = [(128, 64, 4, 4), (128, 64, 4, 3), (128, 128, 8, 4), (64, 128, 8, 4), (64, 64, 4, 4)]
    for rows, tile_n, warps, stages in shapes:
        yield Tile(rows, tile_n, 0, 1, warps, stages)


def _more_progressive(m: int, n: int, k: int) -> Iterator[Tile]:
    if progressive.scratch_bytes(m, n, k):
        return
    block_m = min(max(bucket(m), 32), 128)
    shapes = [(block_m, 64, 4, stages) for stages in (2, 3, 4)] + [
        (block_m, 128, 8, stages) for stages in (2, 3)
    ]
    if m > 64:
        shapes += [(64, 64, 4, stages) for stages in (2, 3)]
    for rows, tile_n, warps, stages in shapes:
        tiles = -(-m // rows) * -(-n // tile_n)
        for split in (1, 2, 4, 5, 8, 10):
            # From most of an H200's 132 multiprocessors at work to several programs on each.
            if split == 1 or (split <= k // 256 and 96 <= tiles * split <= 1100):
                yield Tile(rows, tile_n, 0, split, warps, stages)


_MORE = {"int8_linear": _more_int8, "int4_linear": _more_int4, "int4_progressive_linear": _more_progressive}


def random_weight(kind: Kind, n: int, k: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return random tensors as a checkpoint has them for a weight ``[n, k]``.

    Args:
        kind: of the op.
        n: rows.
        k: columns.
        generator: of the device where they are made.
    """
    random = partial(torch.randint, generator=generator, device=generator.device, dtype=torch.int8)
    uniform = partial(torch.rand, generator=generator, device=generator.device)
    if not kind.group_size:
        return random(-127, 128, (n, k)), uniform(n) * 0.01
    packed, groups = random(-128, 128, (n, k // 2)).view(torch.uint8), k // kind.group_size
    if kind.reference is int4_linear:
        return packed, uniform(n, groups) * 0.01
    zero_point = random(-8, 8, (n, groups))
    largest = 127 // torch.maximum(7 - zero_point, zero_point + 8)  # with it every code stays within int8
    multiplier = (uniform(n, groups) * largest).to(torch.uint8).clamp(min=1)
    return packed, join_grid(multiplier, zero_point), uniform(n) * 0.01


class Setup:
    """Random operands of a product, and launches of it.

    Results are int8 codes; with n < k, as in out_proj, they are added to a float32 residual of zeros.

    Args:
        product: what to compute.
        device: where.
        copies: number of different weights; by default so many that no cache holds them.

    Attributes:
        weights: as the kernels take them.
        stored: the last of them as a checkpoint has it.
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
        self.result = torch.empty(m, n, dtype=torch.float32 if self.adds else torch.int8, device=device)
        self.result.zero_()
        self.weights: list[tuple[Tensor, ...]] = []
        for _ in range(copies):
            self.stored = random_weight(product.kind, n, k, generator)
            self.weights.append(product.kind.arrange(*self.stored))

    def launches(self, tile: Tile | None) -> list[Callable[[], None]]:
        """Return one launch for each weight, the last of them ``stored``, all into the same result."""
        into = {"residual": self.result} if self.adds else {"out": self.result}
        kind = self.product.kind
        run: Callable[..., None] = partial(kind.linear, self.x, self.x_scale)
        if self.product.norm:
            assert kind.norm_linear is not None, "one of the OPS"
            run = partial(kind.norm_linear, self.hidden, self.gain, 1e-5, self.x_scale)
        return [partial(run, *weight, None, self.scale_out, **into, tile=tile) for weight in self.weights]

    def expected(self) -> Tensor:
        """Return what the last launch leaves in a result of zeros: the reference's."""
        x = self.x
        if self.product.norm:
            x = rms_norm(self.hidden, self.gain, 1e-5, self.x_scale)
        return self.product.kind.reference(x, self.x_scale, *self.stored, None, self.scale_out)


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
