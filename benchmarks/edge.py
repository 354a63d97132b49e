"""Write docs/edge.md: what a token and a prompt should take on small GPUs, from counted work and measured shares.

    python benchmarks/edge.py            # write
    python benchmarks/edge.py --check    # exit with 1 if it would change

Nothing here is measured on such a device: bytes and operations are counted from the plans, and the shares of a GPU's
limits that the kernels reach are what `gpu.py` and `gpu_linear.py` measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import ROOT, keep, measured

from ssmquant.bench.synthetic import shape_plan
from ssmquant.footprint import integer_products
from ssmquant.planning import Plan
from ssmquant.sites import SiteKind


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it.

    Attributes:
        memory: bytes; shared with the system where `system` is not 0.
        system: bytes that the operating system and libraries take of it.
        bandwidth: bytes a second.
        int8: dense int8 operations a second of its tensor cores.
        source: where the figures are from.
    """

    memory: float
    system: float
    bandwidth: float
    int8: float
    source: str


MEASURED_ON = Device(141e9, 0, 4.8e12, 1979e12, "NVIDIA H200 datasheet")
DEVICES = {
    "Jetson Orin Nano 8GB": Device(8e9, 1.5e9, 68e9, 20e12, "datasheet: 68 GB/s, 40 TOPS sparse"),
    "Jetson Orin Nano 8GB Super": Device(8e9, 1.5e9, 102e9, 33.5e12, "datasheet: 102 GB/s, 67 TOPS sparse"),
    "Jetson AGX Orin 64GB": Device(64e9, 1.5e9, 204.8e9, 85e12, "datasheet: 204.8 GB/s, GPU 170 TOPS sparse"),
    "RTX A5000": Device(24e9, 0.5e9, 768e9, 222e12, "datasheet: 768 GB/s, 222 TOPS"),
    "RTX 4090": Device(24e9, 0.5e9, 1008e9, 660e12, "Ada whitepaper: 1,008 GB/s, 660.6 TOPS"),
}
#: (shape, recipe, its row in the measured file, ms a token published for Orin Nano 8GB by the papers' authors)
MODELS = (
    ("mamba2-2.7b", "quamba2-w8a8", ("mamba2-2.7b", 8), None),
    ("mamba2-2.7b", "ssmquant-w4a8+group_size=128+ssm_state=int8", ("mamba2-2.7b", 4), None),
    ("mamba-2.8b", "quamba-w8a8", ("mamba-2.8b", 8), 60.2),
    ("mamba2-8b", "quamba2-w8a8", ("mamba2-8b", 8), None),
    ("mamba2-8b", "ssmquant-w4a8+group_size=128+ssm_state=int8", ("mamba2-8b", 4), None),
    (
        "mamba2-8b",
        "ssmquant-w4a8+group_size=128+ssm_state=int8+embedding=int4+head=int4",
        ("mamba2-8b", 4),
        79.9,
    ),
)
KERNEL_OPS = {8: "int8_linear", 4: "int4_progressive_linear"}  # of projections, by bits
PUBLISHED_ON = "Jetson Orin Nano 8GB"
PROMPT = 2048


@dataclass(frozen=True)
class Work:
    """What a model asks of a device.

    Attributes:
        stored: bytes of weights.
        read: bytes that a token reads: weights but for a table of which it needs a row, and the state.
        state: bytes of one sequence's recurrent state.
        operations: int8 operations of the linear layers for a prompt of `PROMPT` tokens, with the head for the last.
    """

    stored: int
    read: int
    state: int
    operations: int


def work(plan: Plan) -> Work:
    """Count what a model of a plan asks for."""
    rows = {row.site.name: row for row in plan.rows}
    stored = plan.weight_bytes()
    state = sum(row.site.numel * row.scheme.bits // 8 for row in plan.rows if row.site.kind is SiteKind.STATE)
    table = 0 if plan.tied else rows["embedding.weight"].weight_bytes()
    products = integer_products(plan)
    head = products.pop("lm_head.weight", 0)
    return Work(stored, stored - table + state, state, 2 * (PROMPT * sum(products.values()) + head))


@dataclass(frozen=True)
class Shares:
    """Shares of a GPU's limits, 0 … 1, that a model reached where it was measured.

    Attributes:
        kernel: of the bandwidth, the kernel of a large projection (in_proj of the 8B model), for one row.
        step: of the bandwidth, a whole token.
        prompt: of the int8 peak, a whole prompt, its linear layers' operations alone.
    """

    kernel: float
    step: float
    prompt: float


def measured_shares(measured: Mapping[str, Any], kernels: Mapping[str, Any]) -> Iterator[Shares]:
    """Yield the shares of each model; a prompt's only where it was measured."""
    rows = {(row["model"], row["weights"]): row for row in measured["models"]}
    for shape, recipe, key, _ in MODELS:
        needed, row = work(shape_plan(shape, recipe)), rows[key]
        kernel = next(
            1e9 * row["gbps"] / MEASURED_ON.bandwidth
            for row in kernels["rows"]
            if (row["name"], row["op"], row["m"]) == ("8B in_proj", KERNEL_OPS[key[1]], 1)
        )
        step = needed.read / (row["decode"]["1"]["tpot_ms"] * 1e-3) / MEASURED_ON.bandwidth
        prompt = needed.operations / (row["prompt"][f"1x{PROMPT}"] * 1e-3) / MEASURED_ON.int8
        yield Shares(kernel, step, prompt)


def document(measured: Mapping[str, Any], kernels: Mapping[str, Any]) -> str:
    """Return docs/edge.md."""
    shares = list(measured_shares(measured, kernels))
    works = [work(shape_plan(shape, recipe)) for shape, recipe, _, _ in MODELS]
    lines = [
        "# On small GPUs: an estimate",
        "",
        "Written by `python benchmarks/edge.py` from counted bytes and operations and from the shares of the",
        f"limits that the kernels reached on one {measured['environment']['gpu']}",
        "(`benchmarks/results/gpu-h200.json`, `gpu-linear-h200.json`). **None of the devices below was at hand.**",
        "",
        "A token: between the time that the bytes which it reads take at the share of the bandwidth that the kernel",
        "of a large projection reached there, and the same at the share of the whole token. There most of a token",
        "is the latency of launches, which a slow memory hides: its kernels take as long as that large one did there",
        "and longer. So the truth should be nearer to the first. A prompt: its int8",
        "products at the share of the dense peak that a whole prompt reached there; scan and convolution are no",
        "int8 products, so this depends on how a device's other units compare. One sequence; the kernels use nothing",
        "that compute capability 8.7 lacks, and their tiles are not tuned for it.",
        "",
        "| model | weights GB | read a token GB | state MB | kernel's share | token's share | prompt's share |",
        "|---|---|---|---|---|---|---|",
    ]
    for (shape, recipe, _, _), needed, share in zip(MODELS, works, shares, strict=True):
        lines.append(
            f"| {shape} `{recipe}` | {needed.stored / 1e9:.2f} | {needed.read / 1e9:.2f} | {needed.state / 1e6:.0f} | "
            f"{share.kernel:.0%} | {share.step:.0%} | {share.prompt:.0%} |"
        )
    for name, device in DEVICES.items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{device.source}; {device.system / 1e9:.1f} GB taken off for the system.",
            "",
            f"| model | fits | ms a token | {PROMPT:,} tokens, ms | published, ms a token |",
            "|---|---|---|---|---|",
        ]
        for (shape, recipe, _, published), needed, share in zip(MODELS, works, shares, strict=True):
            fits = needed.stored + needed.state <= device.memory - device.system
            token = [1e3 * needed.read / device.bandwidth / part for part in (share.kernel, share.step)]
            prompt = 1e3 * needed.operations / (device.int8 * share.prompt)
            cells = [f"{token[0]:.0f} to {token[1]:.0f}", f"{prompt:,.0f}"] if fits else ["–", "–"]
            quoted = str(published) if published and name == PUBLISHED_ON else ""
            lines.append(
                f"| {shape} `{recipe}` | {'yes' if fits else 'no'} | {' | '.join(cells)} | {quoted} |"
            )
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return the page."""
    files = measured("gpu-*")
    return {ROOT / "docs" / "edge.md": document(files["gpu-h200"], files["gpu-linear-h200"])}


if __name__ == "__main__":
    keep(pages)
