"""Time models of published sizes on one GPU: TPOT, TTFT, memory, and where the time goes.

    python benchmarks/gpu.py benchmarks/results/gpu-NAME.json

Random weights (see `gpu_models`), CUDA graphs, no network; under ten minutes on an H200. TPOT is the mean of a whole
interval of the recurrent state (64 steps, the rounding of states included), besides the median of its steps; TTFT is
the median of ten replays. The float16 baseline runs beside it (see `gpu_fp16`); figures of other implementations,
measured on the same GPU model, are quoted with their source.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_fp16
import torch
import triton
from gpu_models import SHAPES, make

from ssmquant.ops import triton_numerics
from ssmquant.runtime.cuda.engine import CudaEngine, CudaState

STEPS = 64  # an interval of the recurrent state, so that one rounding of all states is among them
DECODE = (1, 16, 64, 128)
PROMPTS = ((1, 512), (1, 2048), (16, 512))
BANDWIDTH = 4.3e12  # bytes a second: what a copy reaches on an H200; the floor of a step

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
#: Kernels of a layer in the order of their launches, for the table of shares.
STEP_STAGES = ("norm", "in_proj", "conv, dt", "scan", "gated norm", "out_proj")
PROMPT_STAGES = ("norm", "in_proj", "conv", "decays", "states", "outputs", "gated norm", "out_proj")


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


def decode(engine: CudaEngine, rows: int) -> dict[str, float]:
    """Return TPOT of a batch at positions 512 to 575."""
    state = CudaState(engine.pool, engine.pool.take(rows), [512] * rows)
    for tensor in engine.pool.tensors.values():
        tensor.uniform_(0.001, 0.1) if tensor.is_floating_point() else tensor.random_(-127, 128)
    engine.pool.positions.fill_(512)
    tokens = torch.randint(0, engine.network.vocab, (rows,), device=engine.network.device)
    _, state = engine.step(tokens, state)  # compiles and captures
    bucket = engine._bucket(rows)
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


def shares(run: Callable[[], object], stages: tuple[str, ...]) -> dict[str, float]:
    """Return microseconds a layer of each stage, launches apart from one another."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        run()
        torch.cuda.synchronize()
    ours = (
        "_rows",
        "_tiles",
        "_grouped",
        "_emit",
        "_prepare",
        "_step",
        "_convolve",
        "_decays",
        "_states",
        "_outputs",
    )
    events = [e for e in profile.events() if e.name in ours]
    events.sort(key=lambda e: e.time_range.start)
    times: dict[str, list[float]] = {stage: [] for stage in stages}
    for index, event in enumerate(events[: len(events) // len(stages) * len(stages)]):
        times[stages[index % len(stages)]].append(event.device_time)
    return {stage: statistics.median(found) for stage, found in times.items() if found}


def stage_table(engine: CudaEngine, rows: int) -> dict[str, Any]:
    """Return microseconds and share of the roofline of each stage of a layer, of a step and of a prompt of 2048."""
    chained = triton_numerics.chains_launches
    triton_numerics.chains_launches = lambda device: False  # type: ignore[assignment]  # else they overlap
    try:
        slots = engine.pool.take(rows)
        where = engine._upload(slots)
        ids = torch.zeros(rows, dtype=torch.int64, device=engine.network.device)
        advance = torch.zeros(rows, dtype=torch.int32, device=engine.network.device)
        stages = STEP_STAGES if rows > 4 else STEP_STAGES[1:]
        times = shares(lambda: engine.launches.step(ids, where, advance), stages)
        engine.pool.release(slots)
        layer, s = engine.mixers.layers[0], engine.mixers.sizes
        moved = {
            "in_proj": layer.in_proj.weight.nbytes + layer.in_proj.scale.nbytes,
            "out_proj": layer.out_proj.weight.nbytes + layer.out_proj.scale.nbytes,
            "scan": rows * s.d_inner * s.d_state,
        }
        return {
            stage: {"us": us, "roofline": moved[stage] / BANDWIDTH / us * 1e6 if stage in moved else None}
            for stage, us in times.items()
        }
    finally:
        triton_numerics.chains_launches = chained


def model(
    name: str, bits: int, batches: tuple[int, ...], prompts: tuple[tuple[int, int], ...]
) -> dict[str, Any]:
    """Return the row of a model."""
    torch.cuda.empty_cache()
    network = make(name, bits)
    engine = CudaEngine(network)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"model": name, "weights": bits, "activations": 8, "decode": {}, "prompt": {}}
    for rows in batches:
        row["decode"][rows] = decode(engine, rows)
        if rows == 1:
            prompt(engine, 1, 512)
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    for batch, length in prompts:
        row["prompt"][f"{batch}x{length}"] = prompt(engine, batch, length)
    if name == "mamba2-2.7b" and bits == 8:
        row["stages"] = {rows: stage_table(engine, rows) for rows in (1, 64)}
    shape = SHAPES[name]
    weights = shape.layers * (shape.d_in_proj + shape.d_inner) * shape.d_model * bits / 8
    weights += shape.vocab * shape.d_model * (1 if shape.tied else bits / 8)
    state = shape.layers * shape.d_inner * shape.d_state * (1 if shape.kind == "mamba2" else 4)
    row["floor_ms"] = {rows: (weights + rows * state) / BANDWIDTH * 1e3 for rows in batches}
    return row


def one_scale_against_piecewise() -> dict[str, float]:
    """Return TPOT at batch 64 and TTFT of 2048 tokens of the 2.7B model, piecewise over one scale a tensor."""
    found = {}
    for piecewise in (True, False):
        torch.cuda.empty_cache()
        engine = CudaEngine(make("mamba2-2.7b", 8, piecewise=piecewise))
        found[piecewise] = (decode(engine, 64)["tpot_ms"], prompt(engine, 1, 2048))
        del engine
    (a, b), (c, d) = found[True], found[False]
    return {"tpot_ratio": a / c, "ttft_ratio": b / d}


def baseline(decode_rows: tuple[int, ...], prompts: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Return the float16 baseline's TPOT and TTFT of the 2.7B model."""
    shape = SHAPES["mamba2-2.7b"]
    found: dict[str, Any] = {"decode": {}, "prompt": {}}
    for rows in decode_rows:
        torch.cuda.empty_cache()
        graph = gpu_fp16.step(shape, rows)
        found["decode"][rows] = statistics.median(milliseconds(graph.replay, 30))
        del graph
    for batch, length in prompts:
        torch.cuda.empty_cache()
        graph = gpu_fp16.prompt(shape, batch, length)
        found["prompt"][f"{batch}x{length}"] = statistics.median(milliseconds(graph.replay, 10))
        del graph
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
        "--brief", action="store_true", help="fewer cells of the baseline, no ratio of scales"
    )
    options = parser.parse_args()
    began = time.time()
    result: dict[str, Any] = {
        "environment": {
            "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
            "cuda": torch.version.cuda, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
            "copy_bytes_per_s": copy_bandwidth(),
        },
        "quoted_ms": QUOTED, "models": [],
    }  # fmt: skip

    def save() -> None:
        result["seconds"] = time.time() - began
        options.json.write_text(json.dumps(result, indent=1) + "\n")

    for name, bits, batches, prompts in (
        ("mamba2-2.7b", 8, DECODE, PROMPTS),
        ("mamba2-2.7b", 4, DECODE, PROMPTS),
        ("mamba2-8b", 8, DECODE, PROMPTS),
        ("mamba2-8b", 4, DECODE, PROMPTS),
        ("mamba-2.8b", 8, (1, 64), ((1, 512), (1, 2048))),
    ):
        row = model(name, bits, batches, prompts)
        result["models"].append(row)
        save()
        steps = " ".join(f"{rows}: {cell['tpot_ms']:.3f}" for rows, cell in row["decode"].items())
        texts = " ".join(f"{cell}: {ms:.2f}" for cell, ms in row["prompt"].items())
        print(f"{name} W{bits}A8  TPOT {steps}  TTFT {texts}  peak {row['peak_gb']:.2f} GB", flush=True)
    if not options.brief:
        result["piecewise_over_one_scale"] = one_scale_against_piecewise()
        save()
    cells = ((1, 64), PROMPTS[1:2]) if options.brief else (DECODE, PROMPTS)
    result["fp16_torch_compile"] = baseline(*cells)
    save()
    print(json.dumps({key: result[key] for key in result if key not in ("models", "quoted_ms")}, indent=1))


if __name__ == "__main__":
    main()
