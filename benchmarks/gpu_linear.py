"""Kernels of the linear layers on a GPU: right first, then how fast, against the roofline.

    PYTHONPATH=src python benchmarks/gpu_linear.py --json gpu_linear.json     # checks, then the table
    PYTHONPATH=src python benchmarks/gpu_linear.py --sweep --json sweep.json  # every candidate tile, to make a table

Microseconds are medians over replays of a CUDA graph that runs through more weights than any cache holds, launched with
programmatic dependent launch where the device has it (``us``) and, for few tokens, without it (``us alone``).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import traceback
from dataclasses import asdict
from itertools import product as combinations
from pathlib import Path

import torch

from ssmquant.ops import triton_numerics
from ssmquant.ops.int8_linear.triton import MAX_NORM_TOKENS
from ssmquant.ops.linear_tuning import (
    KINDS,
    OPS,
    Product,
    Setup,
    candidates,
    measure,
    random_weight,
)
from ssmquant.ops.rms_norm.reference import rms_norm
from ssmquant.ops.tuning import Tile, find

SHAPES = {
    "2.7B in_proj": (10576, 2560),
    "2.7B out_proj": (2560, 5120),
    "8B in_proj": (18560, 4096),
    "8B out_proj": (4096, 8192),
}
HEADS = {"2.7B lm_head": (50288, 2560), "8B lm_head": (256000, 4096)}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048)
HEAD_TOKENS = (1, 16, 64)


def products(tokens: tuple[int, ...], ops: tuple[str, ...]) -> list[tuple[str, Product]]:
    """Return the named products of the table."""
    found = []
    for op in ops:
        for shapes, allowed in ((SHAPES, TOKENS), (HEADS, HEAD_TOKENS)):
            for (name, (n, k)), m in combinations(shapes.items(), tokens):
                product = Product(op, m, n, k)
                if m in allowed and product.taken and not (product.norm and n < k):
                    found.append((name, product))
    return found


def check(device: torch.device, part: int = 0, parts: int = 1, until: float = float("inf")) -> list[str]:
    """Compare every kernel with the reference, bit for bit, on real and odd shapes; return what differs."""
    wrong: list[str] = []
    generator = torch.Generator(device).manual_seed(1)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, generator=generator, device=device, dtype=torch.int8)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def compare(what: str, got: torch.Tensor, want: torch.Tensor) -> None:
        if not torch.equal(got, want):
            share = (got != want).double().mean().item()
            wrong.append(f"{what}: {share:.2e} of the elements differ")

    shapes = {**SHAPES, "130m in_proj": (3352, 768), "130m out_proj": (768, 1536), "370m": (4384, 1024)}
    odd = {"odd N": (1031, 512), "odd K": (77, 333), "K = 16": (64, 16), "one": (1, 1)}
    tokens = (1, 3, 7, 33, 100, 513)
    jobs = combinations({**shapes, **odd}.items(), tokens, KINDS.items())
    for index, ((name, (n, k)), m, (op, kind)) in enumerate(jobs):
        if index % parts != part or (kind.group_size and k % max(kind.group_size, 128)):
            continue
        if m > 512 and name not in ("2.7B in_proj", "2.7B out_proj", "odd N", "odd K"):
            continue
        if time.time() > until:
            wrong.append(f"{op} {name} M={m}: not checked, out of time")
            continue
        dtype = (torch.int8, torch.float32, torch.float16)[index % 7 % 3]
        x, x_scale = codes(m, k), uniform(m, 1) * 0.01 if index % 2 else uniform(1) * 0.01
        stored = random_weight(kind, n, k, generator)
        after = (uniform(n), uniform(n) * 0.1 * k**0.5 + 0.01) if dtype == torch.int8 else (None, None)
        want = kind.reference(x, x_scale, *stored, *after)
        got = torch.full((m, n), 113, dtype=dtype, device=device)
        if dtype == torch.float16:
            want = (want + 113.0).half()
        target = {"residual": got} if dtype == torch.float16 else {"out": got}
        kind.linear(x, x_scale, *kind.arrange(*stored), *after, **target)
        compare(f"{op} {name} M={m} {dtype}", got, want)
        if kind.norm_linear is None or m > MAX_NORM_TOKENS or k % 16:
            continue
        hidden, gain = (uniform(m, k) - 0.5).to((torch.float32, torch.bfloat16)[index % 2]), uniform(k)
        x_scale = torch.full((1,), 0.01, device=device)
        got = torch.full((m, n), float("nan"), device=device)
        kind.norm_linear(hidden, gain, 1e-5, x_scale, *kind.arrange(*stored), None, None, out=got)
        x = rms_norm(hidden, gain, 1e-5, x_scale)
        want = kind.reference(x, x_scale, *stored, None, None)
        error = ((got - want).norm() / want.norm()).item()
        if not error < 1e-3:  # a code of the norm may round the other way
            wrong.append(f"norm {op} {name} M={m} {hidden.dtype}: error ratio {error:.2e}")
    return wrong


def check_tiles(product: Product, device: torch.device) -> list[str]:
    """Compare all candidate tiles with the reference: bit for bit, but for codes of norms."""
    wrong: list[str] = []
    setup = Setup(product, device, copies=1)
    want = setup.expected()
    for tile in candidates(product):
        for _ in range(2):  # the second launch finds the counters as the first left them
            setup.result.fill_(0 if setup.adds else 113)
            try:
                setup.launches(tile)[0]()
            except Exception as error:
                wrong.append(f"{product} {tile}: {type(error).__name__} {str(error)[:100]}")
                break
            differ = (setup.result != want).double().mean().item()
            if differ > (1e-2 if product.norm else 0.0):
                wrong.append(f"{product} {tile}: {differ:.2e} of the elements differ")
    return wrong


def work(jobs: list[Product], part: int, parts: int, until: float) -> list[str]:
    """Do a part of the checks, which compile what is measured later; return what differs and what was left undone."""
    device = torch.device("cuda", 0)
    wrong: list[str] = []
    for job in jobs[part::parts]:
        if time.time() > until:
            wrong.append(f"{job}: not checked, out of time")
            continue
        try:
            wrong += check_tiles(job, device)
        except Exception:
            wrong.append(f"{job}: {traceback.format_exc()[-400:]}")
    try:
        wrong += check(device, part, parts, until)
    except Exception:
        wrong.append(f"part {part}: {traceback.format_exc()[-600:]}")
    return wrong


def ceilings(device: torch.device) -> tuple[float, float]:
    """Return bytes a second of a large copy, read and written, and int8 operations a second of a large product."""
    large = torch.empty(1 << 31, dtype=torch.int8, device=device)
    target = torch.empty_like(large)
    times = []
    for _ in range(9):  # as a kernel: in a graph a copy is made by the copy engine, which is slower
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(large)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    a = torch.randint(-127, 128, (8192, 8192), dtype=torch.int8, device=device)
    product = measure([lambda: torch._int_mm(a, a.T)], 5)
    return 2 * large.numel() / statistics.median(times) * 1e3, 2 * 8192**3 / product * 1e6


def row(name: str, product: Product, us: float, read: float, tile: Tile | None) -> dict[str, object]:
    """Return a row of the table: time, bytes and operations a second, share of the roofline at M tokens."""
    moved = product.weight_bytes + product.m * (product.k + product.n)
    operations = 2 * product.m * product.n * product.k
    floor = max(moved / read, operations / 1979e12) * 1e6
    return {
        "name": name, **asdict(product), "us": round(us, 2), "gbps": round(moved / us / 1e3),
        "tops": round(operations / us / 1e6, 1), "roofline": round(floor / us, 3),
        "tile": asdict(tile) if tile else None,
    }  # fmt: skip


def main() -> None:
    """Run the checks and the measurements that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="measure every candidate tile")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=300.0, help="stop checking after so long")
    parser.add_argument("--alone", action="store_true", help="also without programmatic dependent launch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda", 0)
    start = time.time()
    tokens = tuple(int(m) for m in options.tokens.split(","))
    jobs = products(tokens, tuple(options.ops.split(",")))
    parts = options.processes
    with multiprocessing.get_context("spawn").Pool(parts) as pool:
        sweep = [job for _, job in jobs] if options.sweep else []
        done = pool.starmap(work, [(sweep, part, parts, start + options.seconds) for part in range(parts)])
    wrong = [line for lines in done for line in lines]
    print(f"{len(wrong)} differ after {time.time() - start:.0f} s", *wrong[:45], sep="\n  ")
    read, operations = ceilings(device)
    print(f"copy {read / 1e12:.2f} TB/s, int_mm {operations / 1e12:.0f} TOPS; roofline: copy, 1979 TOPS")
    rows = []
    for name, job in jobs:
        setup = Setup(job, device)
        times = {}
        if options.sweep:
            for tile in candidates(job):
                try:
                    times[tile] = measure(setup.launches(tile))
                except Exception as error:
                    wrong.append(f"{job} {tile}: {error}")
            times = dict(sorted(times.items(), key=lambda item: item[1]))
            tile, us = next(iter(times.items()), (Tile(0, 0), float("nan")))
        else:
            tile = find(torch.cuda.get_device_name(device), job.op, m=job.m, n=job.n, k=job.k)
            us = measure(setup.launches(tile))
        found = row(name, job, us, read, tile)
        found["times"] = [{**asdict(t), "us": round(v, 2)} for t, v in times.items()]
        if options.alone and job.m <= 64:
            chained = triton_numerics.chains_launches
            triton_numerics.chains_launches = lambda device: False
            found["us_alone"] = round(measure(setup.launches(tile)), 2)
            triton_numerics.chains_launches = chained
        rows.append(found)
        if options.json:
            options.json.write_text(json.dumps({"device": torch.cuda.get_device_name(device), "rows": rows}))
    print(f"measured after {time.time() - start:.0f} s")
    for r in rows:
        cut = ",".join(str(v) for v in r["tile"].values()) if r["tile"] else "default"
        alone = f"{r['us_alone']:8.2f}" if "us_alone" in r else "        "
        print(
            f"{r['op']:28s} {r['name']:14s} {r['m']:5d} {r['us']:8.2f} {alone} {r['gbps']:5d} GB/s "
            f"{r['tops']:7.1f} TOPS {r['roofline']:5.2f}  {cut}"
        )


if __name__ == "__main__":
    main()
