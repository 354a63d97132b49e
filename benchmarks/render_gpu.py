"""Write docs/speed-gpu.md from the measured file benchmarks/results/gpu-h200.json.

python benchmarks/render_gpu.py            # write
python benchmarks/render_gpu.py --check    # exit with 1 if it would change
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import ROOT, keep, measured, table

Row = Mapping[str, Any]

LIMITS = """\
For one row a layer is four launches (five up to four rows, the norm apart), each of which starts while the one before
still runs: in_proj with its norm; convolution and scan; gated norm, Hadamard transform and codes; out_proj. All that
does not depend on the launch before, weights first, is read ahead into registers. In a graph of one row, from the end
of a kernel to the end of the next, in_proj takes 10.2 µs, the scan 3.2, the gated norm 2.8, out_proj 2.0; with four-
bit weights 6.2, 4.6, 2.9 and 2.8. The three after in_proj are the latency of a launch and of one chain of loads.
In_proj's programs hold a part of its weights when their token comes, since the registers of the kernels before leave
no room for all; then they repeat the norm. Where the gated norm read its gain and scales after y, it took 6.0 µs:
out_proj's weights were ahead of them in the queue.

With more rows the tensor cores' tiles wait for their token before they read weights. Tiles whose weights are all in
registers before are slower (16 rows: TPOT 2.6 ms for 2.3; 64 rows: 4.8 for 3.9): there are not enough registers for
all of them at once, and the tokens are read by each. Convolution and scan in one launch without what heads share are
slower from 16 rows on (3.0 ms for 2.3). At 64 rows in_proj reads every token 331 times, 54 MB for 27 MB of weights.

Above 16 rows the scan counts. With 64 it reads 57 MB and writes 4, at half of the bandwidth (counters); kernels that do
nothing but read 63 MB in the same pieces take 16.6 µs. Of 20 cycles between two instructions of a warp 12 are spent on
memory, yet its latency is not all: in turns with 24 µs, the state copied asynchronously into shared memory for one to
eight rows of a head, one or two of them ahead, takes 22.5 to 26; the convolution in the launch before 23, and that
launch three more. Digits in pairs and narrower products, a tenth of the instructions less, take 23; programs of 16 or
32 channels with one or two warps 23 to 26. The rounding of all states once in 64 tokens is 4 % of a step.

What heads share is bound by instructions and, where its digits were stored as single bytes, by those: with the
convolution of x in the same launch 12 µs for 8 heads a program, 22 for 16, 51 for 32. Stored in words and without it,
16 heads take 7.3 µs at 64 rows, where 8 took 9.0 in bytes, and 10.4 at 128 for 14.0; 32 heads take 8.8 and 10.5, and
two or eight warps are slower.

Four-bit weights meet a few tokens as nibbles: sums of sixteen products, then the zero point and the multiplier, about
40 instructions for 32 weights of a thread. That is bound by instructions more than by bytes: in_proj of the 2.7B model
reads at 58 % of the bandwidth alone, of the 8B model, where programs are longer, at 84 %. With more tokens weights are
expanded to int8 as they are read, four in two instructions, and multiplied as such; prompts expand a whole weight once,
at 80 % of the bandwidth, which takes 17 µs a layer. With 16 to 128 rows tensor cores wait for the expansion. With
16, tiles of 16 tokens and two warps are faster than of 32 and four (16 layers of the 2.7B model: 653 µs for 691); with
64, ten other tiles are slower. Reading the next weights into the cache ahead of time was measured and is slower. The 8B
model's heads of 256,000 rows were measured with the norm in each of their programs: 234 µs with four bits, 257 with
eight. Without it they take 127 and 229, so the norm has a launch of its own there.

In prompts in_proj and out_proj reach 55 % and 52 % of the int8 peak; the same products by cuBLASLt (torch._int_mm, its
int32 results written) take 164 and 78 µs, and 8,192 cubed 962 TOPS. In_proj's 1,328 tiles are eight more than five full
waves, but cutting those eight along K is slower (102 µs for 98). Convolution has programs of 64 tokens with eight
channels a thread, and reads what was before the sequence for its first four tokens only: 12.3 µs for 15.4 alone, 5.5
for 8.0 with 512 tokens, where a layer takes 110 for 116 in the chain. Sixteen channels a thread or four, tiles of 16
tokens, spans of 32 to 256 or twice the channels take 13 to 17.

The gated norm holds a row of 5,120 floats in two warps with 255 registers a thread, eight warps a multiprocessor, which
issue in 37 % of the cycles (counters). More warps are no cure: with the outer factor as sums of four tiles and a
product of 16, sixteen warps of 128 registers take 42 µs as well, waiting for global memory two fifths of the time;
where registers hold the inner factor (128, 168, 255 of them) 83, 61 and 55 µs. With the next row copied into shared
memory ahead it takes 38 µs, but gated rows come out wrong as Triton 3.6 compiles it (not in the interpreter, nor
without a gate), and in the chain of a prompt it is worth 1 % with 2.7B and nothing with 8B.

Outputs uses the path from multiprocessor to shared memory and first cache in 76 % of the cycles: operands of products
that are stored there with a conflict in two and read there, and the scales of the state, two float16 terms for every
int8 code. States is a chain of 32 roundings and issues in 50 % of the cycles. Both multiply by two float16 terms where
float32's accuracy needs them: twice the operations that their limit counts.

Measured for prompts and slower: the scan as one kernel that keeps the state in registers (155 µs for the 95 of states
and outputs; with 16 prompts of 512 tokens 414 for 313); outputs with 128 registers, from chunk to chunk while the next
one's loads are under way, or with C made float16 there rather than before (54 µs for 52); the products of two chunks
together before their chain of states (41 µs for 43, but 136 for 120 with 16 prompts) or of four (48 to 68); halves of a
batch in two branches of the graph (4 %). Without gain: four-bit weights expanded on a stream of their own; hints to the
cache that y stays and states go (50 µs for 52 alone, nothing in the chain).
"""


def milliseconds(value: float | None) -> str:
    """Return a time; empty where there is none."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def quoted(measured: Row, model: str, what: str, kind: str, place: int | None) -> str:
    """Return a figure of others, or nothing."""
    found = measured["quoted_ms"].get(model, {}).get(what)
    return "" if found is None or place is None else milliseconds(found[kind][place])


def cells(measured: Row, kind: str, of: str) -> list[str]:
    """Return the table of TPOT (kind ``decode``) or TTFT (``prompt``)."""
    models = {(row["model"], row["weights"]): row for row in measured["models"]}
    half = {row["model"]: row for row in measured["fp16"]}
    order = {"decode": ("1", "16", "64", "128"), "prompt": ("1x512", "1x2048", "16x512")}[kind]
    rows = []
    for name in dict.fromkeys(row["model"] for row in measured["models"]):
        eight, four = models[name, 8], models.get((name, 4))
        for cell, value in eight[kind].items():
            place = order.index(cell) if cell in order else None
            ours = value["tpot_ms"] if kind == "decode" else value
            peer = half.get(name, {})
            others = [None if four is None else four[kind][cell], peer.get(kind, {}).get(cell)]
            if kind == "decode" and others[0]:
                others[0] = others[0]["tpot_ms"]
            faster = "" if others[1] is None else f"{others[1] / ours:.2f} x"
            mark = "*" if others[1] is not None and "run" in peer else ""
            row = [f"{name}, {cell}", milliseconds(ours), *(milliseconds(v) for v in others), faster]
            row[3] += mark
            row += [quoted(measured, name, f"official-w{bits}a8", kind, place) for bits in (8, 4)]
            if kind == "decode":
                row.append(milliseconds(eight["floor_ms"][cell]))
            rows.append(row)
    header = [f"model, {of}", "W8A8", "W4A8", "float16", "float16 / W8A8", "official W8A8", "official W4A8"]
    return table(header + (["floor W8A8"] if kind == "decode" else []), rows)


def staged(measured: Row) -> list[str]:
    """Return the table of what runs stage by stage."""
    found = measured["staged"]
    steps, prompts = (list(found[0][kind]) for kind in ("decode", "prompt"))
    rows = [
        [
            f"`{row['recipe']}`",
            *(milliseconds(row["decode"][cell]["tpot_ms"]) for cell in steps),
            *(milliseconds(row["prompt"][cell]) for cell in prompts),
            f"{row['peak_gb']:.2f}",
        ]
        for row in found
    ]
    header = [
        "recipe",
        *(f"TPOT, batch {cell}" for cell in steps),
        *(f"TTFT, {cell}" for cell in prompts),
        "GB",
    ]
    return table(header, rows)


def kernels(measured: Row) -> list[str]:
    """Return the tables of a layer's kernels."""
    lines = []
    for words, key in (("W8A8", "stages_w8a8"), ("W4A8", "stages_w4a8")):
        for what, found in measured[key].items():
            lines += ["", f"### {words}, {what} {'tokens' if what.startswith('prompt') else 'rows'}", ""]
            rows = [
                [row["stage"], f"{row['us']:.1f}", f"{row['roofline']:.0%}" if row["roofline"] else ""]
                for row in found
            ]
            rows.append(["sum", f"{sum(row['us'] for row in found):.1f}", ""])
            lines += table(["kernel", "µs", "share of its limit"], rows)
    return lines


def document(measured: Row) -> str:
    """Return docs/speed-gpu.md."""
    e, one, split = measured["environment"], measured["one_scale"], measured["decomposition"]
    four, fine = next(row for row in measured["models"] if row["weights"] == 4), measured["groups_of_16"]
    memory = [[f"{row['model']} W{row['weights']}A8", f"{row['peak_gb']:.2f}"] for row in measured["models"]]
    lines = [
        "# Speed on a GPU",
        "",
        "Written by `python benchmarks/render_gpu.py` from `benchmarks/results/gpu-h200.json`, which",
        "`benchmarks/gpu.py --mamba-ssm FOLDER` measures. Random weights in published shapes, CUDA graphs.",
        f"Measured on one {e['gpu']} ({e['copy_bytes_per_s'] / 1e12:.2f} TB/s copied), torch {e['torch']},",
        f"triton {e['triton']}, {e['date']}.",
        "",
        "W8A8 has the form of `quamba2-w8a8` (`quamba-w8a8` for Mamba-1), W4A8 that of",
        f"`{four['recipe']}`, the group of the kernels beside it.",
        "Float16 is mamba_ssm's Triton kernels with cuBLAS in the same run (`benchmarks/gpu_fp16.py`); *: in an",
        "earlier run (2026-11-22), with the same GPU model, torch and triton. Figures of the papers' authors'",
        "kernels (official) are quoted: the same GPU model, torch and triton, another run.",
        "",
        "## Steps",
        "",
        "ms a token (TPOT), the mean over the 64 steps between two roundings of the state, the rounding included. The",
        "floor is the bytes of weights and state over 4.3 TB/s.",
        "",
        *cells(measured, "decode", "rows"),
        "",
        "## Prompts",
        "",
        "ms to the first token (TTFT).",
        "",
        *cells(measured, "prompt", "prompts x tokens"),
        "",
        "## Memory",
        "",
        "GB at most while one sequence is decoded and a prompt of 512 tokens read, graphs included. With W4A8 the 8B",
        "model has head and embedding in four bits, the others' embedding, which is their head too, in eight.",
        "",
        *table(["model", "GB"], memory),
        "",
        "## Stage by stage",
        "",
        "Mamba2-2.7B in recipes that are not static int8 throughout, ms, and GB at most: their stages in graphs,",
        "floats between them in float32. Products of floats have float32's accuracy (two float16 terms a factor),",
        "which those of float16 above do not have, and do not pay for.",
        "",
        *staged(measured),
        "",
        "## What decisions cost",
        "",
        f"Mamba2-2.7B, W8A8 but for the last lines, {one['rows']} rows a step and a prompt of 2,048 tokens, in turns",
        "in one run.",
        "",
        *table(
            ["", "TPOT", "TTFT"],
            [
                [
                    "piecewise scales (128 of x, 16 rows of the state)",
                    *(milliseconds(one[k]) for k in ("tpot_ms", "ttft_ms")),
                ],
                ["one scale a tensor", *(milliseconds(one[f"changed_{k}_ms"]) for k in ("tpot", "ttft"))],
                ["piecewise costs", *(f"{1 / one[f'{k}_ratio'] - 1:.1%}" for k in ("tpot", "ttft"))],
                [
                    "LLM.int8()'s decomposition (16 columns, found as it runs)",
                    *(milliseconds(split[f"changed_{k}_ms"]) for k in ("tpot", "ttft")),
                ],
                ["the decomposition takes", *(f"{split[f'{k}_ratio']:.2f} x" for k in ("tpot", "ttft"))],
                ["W4A8 in groups of 128", *(milliseconds(fine[k]) for k in ("tpot_ms", "ttft_ms"))],
                ["in groups of 16", *(milliseconds(fine[f"changed_{k}_ms"]) for k in ("tpot", "ttft"))],
                ["groups of 16 cost", *(f"{fine[f'{k}_ratio'] - 1:.1%}" for k in ("tpot", "ttft"))],
            ],
        ),
        "",
        "The decomposition is made of PyTorch's and our kernels without fusion between them; a kernel of its own would",
        "cost less.",
        "",
        "## Kernels of a layer",
        "",
        "Mamba2-2.7B, each kernel alone, µs; in the tables above they overlap. The limit is the larger of the bytes",
        "that a kernel must move over 4.3 TB/s and of its products over the tensor cores' datasheet rate (int8 1,979",
        "TOPS, 16 bits 989 TFLOP/s). Norms and convolutions of a few rows are far from any limit: a launch's latency",
        "counts there.",
        *kernels(measured),
        "",
        "## What limits them",
        "",
        LIMITS.rstrip(),
    ]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return the page."""
    return {ROOT / "docs" / "speed-gpu.md": document(measured("gpu-*")["gpu-h200"])}


if __name__ == "__main__":
    keep(pages)
