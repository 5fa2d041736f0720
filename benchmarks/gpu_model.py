"""What the persistent GPU kernels need, and what the model of csrc/cuda/plan.cpp makes of it. Computed, not measured.

    python benchmarks/gpu_model.py                              # the table alone: no GPU, no toolkit
    FASTRNN_GPU_OBJECTS=a.o:b.o python benchmarks/gpu_model.py  # and registers, spills, instructions of built kernels
    python benchmarks/gpu_model.py --out benchmarks/results/gpu-model

For each call on an H100 and an A100: driver, tiling, shared memory, occupancy, bytes that go through the exchange,
multiply-adds, barriers, and the model's microseconds a step. With a built library (this checkout's, or the variable's)
cuobjdump says what registers the kernels take. Letters: T steps, B rows of the batch, H hidden size.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_sass
from gpu_plan import (
    A100,
    CELLS,
    FORMATS,
    H100,
    KB,
    PASS_COLUMNS,
    TILE_COLUMNS,
    TILE_ROWS,
    WARPS,
    Machine,
    Problem,
    Tiling,
    choose,
    constants,
    operand_bytes,
    parts,
    stepwise_time,
    up,
)

HIDDEN = (128, 256, 512, 768, 1024, 1536, 2048)
BATCH = (1, 8, 16, 32, 64, 128)
MACHINES = (H100, A100)
#: Microseconds of a step that are aimed at: LSTM, bfloat16, B = 16, forward, by H.
TARGETS = {512: 0.8, 1024: 1.3}

# CUDA programming guide, technical specifications; the same for 8.0 and 9.0.
REGISTERS, REGISTER_UNIT, SHARED_UNIT, BLOCK_SHARED = 64 * KB, 256, 128, KB
MOST_BLOCKS, MOST_WARPS = 32, 64


def blocks_at_once(m: Machine, registers: int, shared_bytes: int) -> int:
    """Blocks of a persistent kernel on one multiprocessor: by registers, shared memory, warps and blocks."""
    each_warp = up(registers * 32, REGISTER_UNIT)
    by_registers = REGISTERS // each_warp // WARPS
    by_shared = m.processor_shared // (up(shared_bytes, SHARED_UNIT) + BLOCK_SHARED)
    return min(by_registers, by_shared, MOST_BLOCKS, MOST_WARPS // WARPS)


def rows_of_groups(t: Tiling, B: int) -> list[int]:
    """Rows of the batch of each group: the last one may have fewer."""
    return [min(t.rows, B - first) for first in range(0, B, t.rows)]


def step_counts(p: Problem, t: Tiling) -> dict[str, int]:
    """What one step does, all blocks together; the emulator counts the same (tests/cuda/test_gpu_model.py).

    products: of a warp (one mma). loaded_bytes: of the operand that blocks load, out of L2 (grid) or their own shared
    memory (cluster), as often as their warps do. stored_bytes: what is stored for the next step's operand, in a
    cluster once for each of its blocks.
    """
    cell, fmt = CELLS[p.cell], FORMATS[p.fmt]
    columns = [up(rows, TILE_COLUMNS) for rows in rows_of_groups(t, p.B)]
    passes = sum(-(-rows // PASS_COLUMNS) for rows in rows_of_groups(t, p.B))
    row_tiles = -(-t.matrix_rows // TILE_ROWS)
    blocks = t.depth // fmt.depth_block
    numbers = p.B * p.H * (cell.recurrent if p.backward else 1)
    return {
        "products": t.unit_slices * sum(columns) // TILE_COLUMNS * row_tiles * blocks * 2 if fmt.tensor else 0,
        "loaded_bytes": t.unit_slices * sum(columns) * t.depth * fmt.bytes * t.warps_across,
        "stored_bytes": numbers * fmt.bytes * (t.unit_slices if t.cluster else 1),
        "announcements": 0 if t.cluster else t.unit_slices * t.row_slices,
        "cluster_barriers": t.row_slices if t.cluster else 0,
        # After the product of each pass, between passes, and in the grid around its counter.
        "block_barriers": t.unit_slices * (2 * passes - t.row_slices + (0 if t.cluster else 2 * t.row_slices)),
    }


def call_counts(p: Problem, t: Tiling, T: int) -> dict[str, int]:
    """What a call of T steps does; backward with gradients of the initial states."""
    step, blocks = step_counts(p, t), t.unit_slices * t.row_slices
    total = {name: n * T for name, n in step.items()}
    if t.cluster:
        total["cluster_barriers"] += t.row_slices  # before the first step: the operand's padding is zero
    if p.backward:
        total["block_barriers"] += blocks  # the states have been read
    return total


def kernel_of(p: Problem, driver: str) -> gpu_sass.Kernel:
    return gpu_sass.Kernel(p.cell, p.fmt, driver, p.backward)


def row(
    m: Machine, p: Problem, c: Mapping[str, float], code: Mapping[gpu_sass.Kernel, gpu_sass.Code]
) -> dict[str, Any]:
    """One line of the report."""
    choice = choose(p, m, c)
    assert choice is not None  # step-wise is always possible
    found: dict[str, Any] = {
        "gpu": m.name, "cell": p.cell, "format": p.fmt, "backward": p.backward, "H": p.H, "B": p.B,
        "driver": choice.driver, "microseconds": round(choice.microseconds, 3),
        "stepwise_microseconds": round(stepwise_time(p, c), 3),
    }  # fmt: skip
    t = choice.tiling
    if t is None:
        return found
    step, blocks = step_counts(p, t), t.unit_slices * t.row_slices
    at_once = min(blocks, m.processors)
    found |= {
        "unit_slices": t.unit_slices, "row_slices": t.row_slices, "units": t.units, "rows": t.rows,
        "warps": t.warps_across * t.warps_deep, "blocks": blocks, "idle_processors": m.processors - at_once,
        "shared_bytes": t.shared_bytes,
        "weight_bytes": t.matrix_rows * t.depth * FORMATS[p.fmt].bytes * blocks,
        "operand_bytes": operand_bytes(t, FORMATS[p.fmt]),
        "loaded_bytes": step["loaded_bytes"], "stored_bytes": step["stored_bytes"],
        "block_multiply_adds": t.matrix_rows * t.depth * up(t.rows, TILE_COLUMNS),
        "parts": [round(part, 3) for part in parts(t, FORMATS[p.fmt], c)],
    }  # fmt: skip
    kernel = code.get(kernel_of(p, choice.driver))
    if kernel is not None:
        found |= {
            "registers": kernel.registers,
            "local_bytes": kernel.stack,
            "blocks_a_processor": blocks_at_once(m, kernel.registers, t.shared_bytes),
        }
    return found


def kernels_built(disassemble: bool) -> tuple[dict[str, dict[gpu_sass.Kernel, gpu_sass.Code]], str]:
    """By architecture, of the library that there is; or nothing and the reason."""
    libraries = gpu_sass.built_libraries()
    if not libraries:
        return {}, "the CUDA kernels are not built, and FASTRNN_GPU_OBJECTS names none"
    try:
        return {m.architecture: gpu_sass.read(libraries, m.architecture, disassemble) for m in MACHINES}, ""
    except RuntimeError as problem:
        return {}, str(problem)


def report() -> dict[str, Any]:
    c = constants()
    code, problem = kernels_built(disassemble=True)
    problems = itertools.product(CELLS, FORMATS, BATCH, HIDDEN, (False, True))
    calls = [Problem(cell, fmt, B, H, backward) for cell, fmt, B, H, backward in problems]
    return {
        "kind": "computed, not measured on a GPU",
        "constants": {name: c[name] for name in sorted(c)},
        "targets": [{"H": H, "microseconds": us} for H, us in TARGETS.items()],
        "kernels_missing": problem,
        "kernels": [
            {"architecture": a, **dataclasses.asdict(kernel), "registers": found.registers, "local_bytes": found.stack,
             "instructions": {kind: n for kind, n in sorted(found.counts.items()) if n},
             "in_a_step": {kind: n for kind, n in sorted(found.loop.items()) if n}}
            for a, kernels in code.items() for kernel, found in sorted(kernels.items())
            if kernel.cell in CELLS and (kernel.driver == "grid" or a != "sm_80")
        ],
        "calls": [row(m, p, c, code.get(m.architecture, {})) for m in MACHINES for p in calls],
    }  # fmt: skip


def packed(document: Mapping[str, Any]) -> str:
    """The report as JSON: a line for each kernel and each call, calls without their columns' names."""
    columns = list(dict.fromkeys(name for call in document["calls"] for name in call))
    rows = [[call.get(name) for name in columns] for call in document["calls"]]
    text = json.dumps({**document, "columns": columns, "kernels": [], "calls": []}, indent=1, ensure_ascii=False)
    for name, values in (("kernels", document["kernels"]), ("calls", rows)):
        listed = ",\n  ".join(json.dumps(one, separators=(",", ":"), ensure_ascii=False) for one in values)
        text = text.replace(f'"{name}": []', f'"{name}": [\n  {listed}\n ]')
    return text + "\n"


def unpacked(text: str) -> dict[str, Any]:
    document = json.loads(text)
    columns = document.pop("columns")
    document["calls"] = [
        {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        for values in document["calls"]
    ]
    return document


def cell_of_table(found: Mapping[str, Any]) -> str:
    if found["driver"] == "stepwise":
        return f"step-wise {found['microseconds']:.1f}"
    return f"{found['driver']} {found['row_slices']}×{found['unit_slices']} {found['microseconds']:.1f}"


def markdown(document: Mapping[str, Any]) -> str:
    lines = ["# The persistent GPU kernels: computed, not measured on a GPU", ""]
    lines += ["By `benchmarks/gpu_model.py`; all calls, and the columns that are left out here, are in the JSON.", ""]
    lines += ["## LSTM, bfloat16, B = 16", ""]
    lines += _details([f for f in document["calls"] if (f["cell"], f["format"], f["B"]) == ("lstm", "bfloat16", 16)])
    for gpu, fmt in itertools.product((m.name for m in MACHINES), FORMATS):
        lines += ["", f"## {gpu}, {fmt}: driver, groups × blocks of each, µs a step by the model", ""]
        lines += ["| | H | " + " | ".join(f"B = {B}" for B in BATCH) + " |", "|---|---:|" + "---|" * len(BATCH)]
        calls = [f for f in document["calls"] if (f["gpu"], f["format"]) == (gpu, fmt)]
        for cell, backward, H in itertools.product(CELLS, (False, True), HIDDEN):
            chosen = [f for f in calls if (f["cell"], f["backward"], f["H"]) == (cell, backward, H)]
            what = f"{cell} {'backward' if backward else 'forward'}"
            lines.append(f"| {what} | {H} | " + " | ".join(map(cell_of_table, chosen)) + " |")
    lines += ["", "## Kernels as nvcc made them", ""]
    if document["kernels_missing"]:
        return "\n".join([*lines, f"Not looked at: {document['kernels_missing']}.", ""])
    lines += ["Instructions: all, and in brackets those in the loop over time.", ""]
    kinds = ("mma", "fresh loads", "fences", "announcements", "polls", "cluster waits", "block barriers")
    lines += [f"| | | registers | local bytes | {' | '.join(kinds)} |", "|---|---|" + "---:|" * (2 + len(kinds))]
    for k in document["kernels"]:
        name = gpu_sass.Kernel(k["cell"], k["fmt"], k["driver"], k["backward"]).text
        counts = [f"{k['instructions'].get(kind, 0)} ({k['in_a_step'].get(kind, 0)})" for kind in kinds]
        lines.append(f"| {name} | {k['architecture']} | {k['registers']} | {k['local_bytes']} | {' | '.join(counts)} |")
    return "\n".join([*lines, ""])


def _details(calls: list[Mapping[str, Any]]) -> list[str]:
    head = ["", "H", "driver", "blocks", "idle", "units × rows", "shared KB", "registers", "blocks a processor"]
    head += ["weights MB", "stored KB", "loaded MB", "wait + product + operand + units µs", "µs", "aim"]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---|" + "---:|" * (len(head) - 3)]
    for f in calls:
        what = f"{f['gpu']} {'backward' if f['backward'] else 'forward'}"
        aim = "" if f["backward"] or f["gpu"] != H100.name else str(TARGETS.get(f["H"], ""))
        if f["driver"] == "stepwise":
            middle = ["–"] * (len(head) - 5)
        else:
            middle = [
                f"{f['row_slices']}×{f['unit_slices']}", f["idle_processors"], f"{f['units']}×{f['rows']}",
                f"{f['shared_bytes'] / KB:.0f}", f.get("registers", "?"), f.get("blocks_a_processor", "?"),
                f"{f['weight_bytes'] / 2**20:.1f}", f"{f['stored_bytes'] / KB:.0f}",
                f"{f['loaded_bytes'] / 2**20:.2f}", " + ".join(f"{part:.2f}" for part in f["parts"]),
            ]  # fmt: skip
        values = [what, f["H"], f["driver"], *middle, f"{f['microseconds']:.2f}", aim]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the persistent GPU kernels need, computed without a GPU.")
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md instead of printing the table")
    args = parser.parse_args(argv)
    document = report()
    if args.out is None:
        print(markdown(document))
        return 0
    args.out.with_suffix(".json").write_text(packed(document), encoding="utf-8")
    args.out.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
    if document["kernels_missing"]:
        print(f"without the kernels themselves: {document['kernels_missing']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
