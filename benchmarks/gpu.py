"""Time models of published sizes on one GPU: TPOT, TTFT, memory, and where the time goes.

    python benchmarks/gpu.py benchmarks/results/gpu-NAME.json

Random weights (see `gpu_models`), CUDA graphs, no network; under ten minutes on an H200. TPOT is the mean of a whole
interval of the recurrent state (64 steps, the rounding of states included), besides the median of its steps; TTFT is
the median of ten replays. The float16 baseline runs beside it (see `gpu_fp16`); figures of other implementations,
measured on the same GPU model, are quoted with their source.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gpu_fp16
import torch
import triton
from gpu_decomposed import Decomposed
from gpu_models import GROUP_SIZE, SHAPES, make

from ssmquant.bench.shapes import shape_config
from ssmquant.bench.synthetic import random_model
from ssmquant.ops import triton_numerics
from ssmquant.recipe import load_recipe
from ssmquant.resolution import resolve
from ssmquant.runtime.cuda.engine import CudaEngine, CudaState
from ssmquant.runtime.cuda.mamba2 import Mamba2Layers
from ssmquant.runtime.cuda.network import Network

Row = dict[str, Any]

STEPS = 64  # an interval of the recurrent state, so that one rounding of all states is among them
DECODE = (1, 16, 64, 128)
PROMPTS = ((1, 512), (1, 2048), (16, 512))
# What the random models have the form of, by mixer and bits of the projections.
RECIPES = {
    ("mamba1", 8): "quamba-w8a8",
    ("mamba2", 8): "quamba2-w8a8",
    ("mamba2", 4): f"ssmquant-w4a8+group_size={GROUP_SIZE}+ssm_state=int8",
}
BANDWIDTH = 4.3e12  # bytes a second: what a copy reaches on an H200; the floor of a step
INT8, HALF = 1979e12, 989e12  # operations a second of the tensor cores, from the datasheet
MODELS = (
    ("mamba2-2.7b", 8, DECODE, PROMPTS),
    ("mamba2-2.7b", 4, DECODE, PROMPTS),
    ("mamba2-8b", 8, DECODE, PROMPTS),
    ("mamba2-8b", 4, DECODE, PROMPTS),
    ("mamba-2.8b", 8, (1, 64), ((1, 512), (1, 2048))),
)
STAGED = ("fp16", "ssmquant-w4a16", "w8a8-dynamic")  # of the 2.7B model, stage by stage
STAGED_CELLS = (DECODE[:2], PROMPTS[:2])
_LINEAR = ("_rows", "_tiles")
_EXPAND = "_expand"  # a four-bit weight, before the product with a prompt
_STAGES = {
    "_step_alone": "conv and scan", "_prepare": "weights of tokens", "_step": "conv and scan",
    "_convolve": "conv", "_decays": "decays",
    "_states": "states", "_outputs": "outputs",
}  # fmt: skip

#: ms on an H200, CUDA graphs, same shapes: mamba_ssm's newest Triton kernels in float16, and the kernels of the papers'
#: authors. Measured 2026-11-22 with torch 2.11, triton 3.6; not part of this run.
QUOTED = {
    "mamba2-2.7b": {
        "fp16": {"decode": (3.05, 4.79, 9.65, 15.93), "prompt": (8.46, 27.90, 106.8)},
        "official-w8a8": {"decode": (4.40, 7.26, 10.33, 14.17), "prompt": (12.41, 30.70, 105.4)},
        "official-w4a8": {"decode": (3.78, 5.13, 11.76, 15.68), "prompt": (16.43, 49.12, 185.5)},
    },
    "mamba2-8b": {
        "fp16": {"decode": (5.05, 7.56, 14.09, 23.01), "prompt": (15.11, 52.08, 206.7)},
        "official-w8a8": {"decode": (5.26, 7.57, 11.77, 17.29), "prompt": (15.21, 49.18, 197.3)},
        "official-w4a8": {"decode": (3.17, 4.61, 11.53, 18.72), "prompt": (25.09, 89.52, 351.6)},
    },
}


def milliseconds(run: Callable[[], object], count: int) -> list[float]:
    """Return the times of so many runs on the GPU."""
    times = []
    for _ in range(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def fill(engine: CudaEngine, position: int) -> None:
    """Let all slots hold something at a position."""
    for tensor in engine.pool.tensors.values():
        tensor.uniform_(0.001, 0.1) if tensor.is_floating_point() else tensor.random_(-127, 128)
    engine.pool.positions.fill_(position)


def decode(engine: CudaEngine, rows: int) -> dict[str, float]:
    """Return TPOT of a batch at positions 512 to 575."""
    state = CudaState(engine.pool, engine.pool.take(rows), [512] * rows, lambda path, state: None)
    fill(engine, 512)
    tokens = torch.randint(0, engine.network.vocab, (rows,), device=engine.network.device)
    _, state = engine.step(tokens, state)  # compiles and captures
    bucket = engine._buckets[rows]
    slots = state.hand_over()
    due = engine._upload(slots)

    def interval() -> list[float]:
        engine.pool.positions.fill_(512)
        times = milliseconds(bucket.graph.replay, STEPS)
        times[-1] += milliseconds(lambda: engine.mixers.round(due, engine.pool.tensors), 1)[0]
        return times

    interval()
    times = interval()
    assert bool(bucket.logits.isfinite().all())
    engine.pool.release(slots)
    return {"tpot_ms": statistics.mean(times), "step_ms": statistics.median(times)}


def prompt(engine: CudaEngine, batch: int, length: int) -> float:
    """Return TTFT, ms."""
    device = engine.network.device
    ids = torch.randint(0, engine.network.vocab, (batch, length), device=device)
    slots = engine.pool.take(batch)
    kept = engine.capture_prompts(ids, engine._upload(slots))
    milliseconds(kept.graph.replay, 2)
    result = statistics.median(milliseconds(kept.graph.replay, 10))
    assert bool(kept.logits.isfinite().all())
    engine.pool.release(slots)
    return result


def kernels(run: Callable[[], object], layers: int) -> list[tuple[str, float]]:
    """Return name and microseconds of a layer's kernels in order: medians over the layers, no two at once."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        run()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: e.time_range.start)
    names = [e.name for e in events]
    for period in range(4, len(names) // layers + 1):
        for first in range(len(names) - period * layers + 1):
            part = names[first : first + period]
            # A layer begins with the norm, unless it is in_proj's, and in_proj; the convolution follows.
            product = int(part[0].startswith("_emit"))
            product += part[product] == _EXPAND
            begins = part[product] in _LINEAR and not part[product + 1].startswith(
                (*_LINEAR, _EXPAND, "_emit")
            )
            if begins and names[first : first + period * layers] == part * layers:
                times = [e.device_time for e in events[first : first + period * layers]]
                return [(name, statistics.median(times[i::period])) for i, name in enumerate(part)]
    raise AssertionError(f"no period in {names[:40]}")


def stages(found: list[tuple[str, float]], engine: CudaEngine, rows: int, prompt: bool) -> list[Row]:
    """Return what each kernel of a layer does, its time and the share of its floor in it.

    The floor is the larger of the bytes that it must move over the bandwidth of a copy, and the operations of its
    products over the tensor cores' int8 (linear layers) or 16-bit rate.
    """
    mixers = engine.mixers
    assert isinstance(mixers, Mamba2Layers)
    s, layer = mixers.sizes, mixers.layers[0]
    d_model, inner, width = layer.norm.gain.numel(), s.d_inner, s.conv_dim
    projected = inner + width + s.nheads
    of_state, chunks = inner * s.d_state, rows / 64 if prompt else rows
    in_bytes, out_bytes = (p.nbytes for p in (layer.in_proj, layer.out_proj))
    products = {
        "in_proj": (in_bytes + rows * (d_model + projected), 2 * rows * d_model * projected / INT8),
        "out_proj": (out_bytes + rows * (inner + 8 * d_model), 2 * rows * inner * d_model / INT8),
    }
    small = {
        "norm": rows * 5 * d_model,
        "gated norm, Hadamard, codes": rows * 6 * inner,
        "weights of tokens": rows * (2 * (width - inner) + s.nheads),
        "conv and scan": rows * (of_state + 32 * inner + 7 * inner),  # half an interval of tokens waits
        "conv": rows * 2 * width,
        "decays": rows * s.nheads * 17,
        "states": rows * (width - s.ngroups * s.d_state) + chunks * of_state,
        "outputs": rows * (width + 4 * inner) + chunks * of_state,
    }
    scans = {"states": 2 * rows * of_state / HALF, "outputs": 2 * rows * (of_state + 64 * inner) / HALF}
    floors = {name: max(count / BANDWIDTH, seconds) for name, (count, seconds) in products.items()}
    floors |= {name: max(count / BANDWIDTH, scans.get(name, 0.0)) for name, count in small.items()}
    for name, count in (("in_proj", d_model * projected), ("out_proj", inner * d_model)):
        floors[f"{name}, its weight expanded"] = 1.5 * count / BANDWIDTH
    table, seen = [], 0
    for kernel, us in found:
        if kernel == _EXPAND:
            stage = f"{'out_proj' if seen else 'in_proj'}, its weight expanded"
        elif kernel in _LINEAR:
            stage = "out_proj" if seen else "in_proj"
            seen += 1
        elif kernel.startswith("_emit"):
            stage = "gated norm, Hadamard, codes" if seen else "norm"
        else:
            stage = _STAGES.get(kernel, kernel)
        floor = floors.get(stage)
        table.append({"stage": stage, "us": us, "roofline": floor and floor * 1e6 / us})
    return table


def stage_tables(name: str, bits: int) -> dict[str, list[Row]]:
    """Return the stages of a step of 1, 16 and 64 rows and of a prompt of 2048 tokens, of a few layers."""
    engine = CudaEngine(make(name, bits, layers=4))
    chained = triton_numerics.chains_launches
    triton_numerics.chains_launches = lambda device: False  # type: ignore[assignment]  # else they overlap
    tables = {}
    try:
        for rows in (1, 16, 64):
            slots = engine.pool.take(rows)
            where = engine._upload(slots)
            ids = torch.zeros(rows, dtype=torch.int64, device=engine.network.device)
            advance = torch.zeros(rows, dtype=torch.int32, device=engine.network.device)
            fill(engine, 512 + 32)
            found = kernels(lambda w=where, i=ids, a=advance: engine.launches.step(i, w, a), 4)  # type: ignore[misc]
            tables[f"step of {rows}"] = stages(found, engine, rows, False)
            engine.pool.release(slots)
        slots = engine.pool.take(1)
        where = engine._upload(slots)
        ids = torch.randint(0, engine.network.vocab, (1, 2048), device=engine.network.device)
        found = kernels(lambda: engine.launches.read(ids, where), 4)
        tables["prompt of 2048"] = stages(found, engine, 2048, True)
        engine.pool.release(slots)
    finally:
        triton_numerics.chains_launches = chained
    return tables


def model(
    name: str, bits: int, batches: tuple[int, ...], prompts: tuple[tuple[int, int], ...]
) -> dict[str, Any]:
    """Return the row of a model."""
    engine = CudaEngine(make(name, bits))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {
        "model": name,
        "recipe": RECIPES[SHAPES[name].kind, bits],
        "weights": bits,
        "activations": 8,
    }
    row |= {"decode": {}, "prompt": {}}
    for rows in batches:
        row["decode"][str(rows)] = decode(engine, rows)
        if rows == 1:
            prompt(engine, 1, 512)
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    for batch, length in prompts:
        row["prompt"][f"{batch}x{length}"] = prompt(engine, batch, length)
    shape = SHAPES[name]
    weights = shape.layers * (shape.d_in_proj + shape.d_inner) * shape.d_model * bits / 8
    weights += shape.vocab * shape.d_model * (1 if shape.tied else bits / 8)
    state = shape.layers * shape.d_inner * shape.d_state * (1 if shape.kind == "mamba2" else 4)
    row["floor_ms"] = {str(rows): (weights + rows * state) / BANDWIDTH * 1e3 for rows in batches}
    return row


def staged(
    recipe: str, batches: tuple[int, ...], prompts: tuple[tuple[int, int], ...], layers: int = 0
) -> Row:
    """Return TPOT, TTFT and memory of the 2.7B model in a recipe that the engine runs stage by stage."""
    name, config = "mamba2-2.7b", shape_config("mamba2-2.7b")
    config.num_hidden_layers = layers or config.num_hidden_layers
    plan = resolve(load_recipe(recipe), config, tied=True)
    engine = CudaEngine.of(random_model(name, config, plan, "cuda").shell)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    decoded = {str(rows): decode(engine, rows) for rows in batches}
    read = {f"{batch}x{length}": prompt(engine, batch, length) for batch, length in prompts}
    peak = torch.cuda.max_memory_allocated() / 1e9
    return {"model": name, "recipe": recipe, "decode": decoded, "prompt": read, "peak_gb": peak}


def ratio(changed: Callable[[], Network], rows: int, bits: int = 8) -> Row:
    """Return TPOT of so many rows and TTFT of 2048 tokens of the 2.7B model and of a changed one, in turns.

    Args:
        changed: makes the other model.
        rows: of a step.
        bits: of the first model's weights.
    """
    times: dict[str, list[float]] = {"tpot": [], "ttft": [], "changed_tpot": [], "changed_ttft": []}
    engines = [CudaEngine(make("mamba2-2.7b", bits)), CudaEngine(changed())]
    for _ in range(3):
        for prefix, engine in zip(("", "changed_"), engines, strict=True):
            times[f"{prefix}tpot"].append(decode(engine, rows)["tpot_ms"])
            times[f"{prefix}ttft"].append(prompt(engine, 1, 2048))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "rows": rows, **{f"{name}_ms": value for name, value in medians.items()},
        "tpot_ratio": medians["changed_tpot"] / medians["tpot"],
        "ttft_ratio": medians["changed_ttft"] / medians["ttft"],
    }  # fmt: skip


def decomposed() -> Network:
    """Return the 2.7B model with projections that split outlier columns off and scale each token as they run."""
    network = make("mamba2-2.7b", 8)
    mixers = network.mixers
    assert isinstance(mixers, Mamba2Layers)
    layers = tuple(
        replace(layer, in_proj=Decomposed(layer.in_proj), out_proj=Decomposed(layer.out_proj))  # type: ignore[arg-type]
        for layer in mixers.layers
    )
    return replace(network, mixers=replace(mixers, layers=layers))


class FromPeers(NamedTuple):
    """A cell of the baseline: a model, and rows or a prompt."""

    model: str
    decode: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...]


BASELINE = (
    FromPeers("mamba2-2.7b", DECODE, PROMPTS),
    FromPeers("mamba2-8b", (1, 64), PROMPTS[1:]),
    FromPeers("mamba-2.8b", (1, 64), ()),
)


def baseline(cells: FromPeers) -> dict[str, Any]:
    """Return the float16 baseline's TPOT and TTFT of a model."""
    shape = SHAPES[cells.model]
    found: dict[str, Any] = {"model": cells.model, "decode": {}, "prompt": {}}
    for rows in cells.decode:
        torch.cuda.empty_cache()
        graph = gpu_fp16.step(shape, rows)
        found["decode"][str(rows)] = statistics.median(milliseconds(graph.replay, 30))
        del graph
    for batch, length in cells.prompts:
        torch.cuda.empty_cache()
        graph = gpu_fp16.prompt(shape, batch, length)
        found["prompt"][f"{batch}x{length}"] = statistics.median(milliseconds(graph.replay, 10))
        del graph
    return found


def compile_ahead(job: tuple[str, int, int, tuple[int, int]], fp16: Path | None) -> str:
    """Compile what a model needs for a batch and a prompt, in a process of its own; return what went wrong."""
    name, bits, rows, (batch, length) = job
    try:
        if bits == 16:
            assert fp16 is not None
            gpu_fp16.use_mamba_ssm(fp16)
            shape = replace(SHAPES[name], layers=1)
            if rows:
                gpu_fp16.step(shape, rows)
            if length:
                gpu_fp16.prompt(shape, batch, length)
        else:
            engine = CudaEngine(make(name, bits, layers=1))
            if rows:
                decode(engine, rows)
            if length:
                prompt(engine, batch, length)
    except Exception as error:
        return f"{job}: {type(error).__name__} {str(error)[:300]}"
    return ""


def compile_staged(recipe: str) -> str:
    """Compile what a recipe's stages need, in a process of its own; return what went wrong."""
    try:
        staged(recipe, *STAGED_CELLS, layers=1)
    except Exception as error:
        return f"{recipe}: {type(error).__name__} {str(error)[:300]}"
    return ""


def jobs(fp16: bool) -> list[tuple[str, int, int, tuple[int, int]]]:
    """Return what to compile ahead, a process each."""
    nothing = (0, 0)
    found = [
        (name, bits, rows, cell)
        for name, bits, batches, prompts in MODELS
        for rows, cell in [(rows, nothing) for rows in batches]
        + [(0, cell) for cell in prompts[:1] + prompts[2:]]
    ]
    if fp16:
        found = [(c.model, 16, 0, c.prompts[-1]) for c in BASELINE if c.prompts] + found
        found += [(c.model, 16, rows, nothing) for c in BASELINE for rows in c.decode]
    return found


def copy_bandwidth() -> float:
    """Return bytes a second of a device-to-device copy, read and written."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(milliseconds(lambda: target.copy_(source), 9)) * 1e3


def main() -> None:
    """Run everything and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="file to write")
    parser.add_argument(
        "--mamba-ssm", type=Path, help="unpacked source distribution, for the float16 baseline"
    )
    parser.add_argument("--processes", type=int, default=8, help="that compile kernels first")
    parser.add_argument("--seconds", type=float, default=540.0, help="leave out what has not begun by then")
    options = parser.parse_args()
    began = time.time()
    result: dict[str, Any] = {"quoted_ms": QUOTED, "models": [], "staged": [], "fp16": [], "left_out": []}

    def measure(what: str, run: Callable[[], Any], into: Callable[[Any], object]) -> None:
        if time.time() - began > options.seconds:
            result["left_out"].append(what)
            return
        try:
            into(run())
        except Exception as error:  # one cell must not take the others with it
            result["left_out"].append(f"{what}: {type(error).__name__} {str(error)[:300]}")
        gc.collect()  # an engine is part of a cycle
        torch.cuda.empty_cache()
        result["seconds"] = time.time() - began
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{time.time() - began:5.0f} s  {what}", flush=True)

    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=4) as pool:
        ahead = [(job, options.mamba_ssm) for job in jobs(options.mamba_ssm is not None)]
        by_stages = pool.map_async(compile_staged, STAGED, chunksize=1)
        lines = pool.starmap(compile_ahead, ahead, chunksize=1) + by_stages.get()
        result["compile"] = [line for line in lines if line]
    print(f"{time.time() - began:5.0f} s  compiled", *result["compile"], sep="\n  ", flush=True)
    result["environment"] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
        "copy_bytes_per_s": copy_bandwidth(),
    }  # fmt: skip
    for name, bits, batches, prompts in MODELS:
        measure(f"{name} W{bits}A8", partial(model, name, bits, batches, prompts), result["models"].append)
    if options.mamba_ssm:
        gpu_fp16.use_mamba_ssm(options.mamba_ssm)
        measure("fp16 mamba2-2.7b", partial(baseline, BASELINE[0]), result["fp16"].append)
    for bits in (8, 4):
        into = partial(result.__setitem__, f"stages_w{bits}a8")
        measure(f"stages W{bits}A8", partial(stage_tables, "mamba2-2.7b", bits), into)
    same = partial(make, "mamba2-2.7b", 8, piecewise=False)
    measure("one scale", partial(ratio, same, 64), partial(result.__setitem__, "one_scale"))
    fine = partial(make, "mamba2-2.7b", 4, group_size=16)
    measure("groups of 16", partial(ratio, fine, 64, 4), partial(result.__setitem__, "groups_of_16"))
    measure("decomposition", partial(ratio, decomposed, 64), partial(result.__setitem__, "decomposition"))
    for recipe in STAGED:
        measure(recipe, partial(staged, recipe, *STAGED_CELLS), result["staged"].append)
    if options.mamba_ssm:
        for cells in BASELINE[1:]:
            measure(f"fp16 {cells.model}", partial(baseline, cells), result["fp16"].append)
    print(*result["left_out"], sep="\n")


if __name__ == "__main__":
    main()
