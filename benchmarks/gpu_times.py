"""Time whole calls of the GPU drivers and of torch.nn (cuDNN); writes a line of JSON after each measurement.

    python benchmarks/gpu_times.py --out build/times.jsonl
    python benchmarks/gpu_times.py --profile

Each row has the microseconds of forward, and of forward with backward, at T = 64 and 512, and those of a time step,
from the difference of the two lengths. The most important rows come first, so that a time limit cuts off the others.
`--device cpu` runs a few rows on the CPU, as a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

import fastrnn

LENGTHS, REPEATS = (64, 512), 5
MODULES = {
    "lstm": (fastrnn.LSTM, torch.nn.LSTM),
    "gru": (fastrnn.GRU, torch.nn.GRU),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32}


class Row(NamedTuple):
    cell: str
    dtype: str
    B: int
    H: int


def rows(device: str) -> Iterator[Row]:
    if device == "cpu":
        yield Row("lstm", "tf32", 2, 32)
        return
    for H in (512, 1024, 256, 768, 2048, 1536):
        for dtype in DTYPES:
            yield Row("lstm", dtype, 16, H)
    for H in (512, 1024):
        yield Row("gru", "bfloat16", 16, H)
        yield Row("lstm", "bfloat16", 64, H)


def engines(row: Row, device: str) -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    """Yield names and functions that make a module; for fastrnn one per driver that can run the row."""
    ours, theirs = MODULES[row.cell]
    yield "torch.nn", lambda: theirs(row.H, row.H)
    if device == "cpu":
        yield "auto", lambda: ours(row.H, row.H)
        return
    for driver in ("cluster", "grid", "stepwise"):
        told = [
            fastrnn.cuda.explain(row.cell, row.B, row.H, dtype=DTYPES[row.dtype], backward=way, driver=driver)
            for way in (False, True)
        ]
        if all(one.possible for one in told):
            yield driver, lambda: ours(row.H, row.H)


def milliseconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(module: torch.nn.Module, row: Row, device: str) -> dict[str, float]:
    """Return the median microseconds of whole calls, and those of a step."""
    dtype = DTYPES[row.dtype]
    module = module.to(device, dtype)
    times: dict[str, float] = {}
    for steps in LENGTHS:
        x = torch.randn(steps, row.B, row.H, device=device, dtype=dtype, requires_grad=True)

        def forward(x: torch.Tensor = x) -> None:
            with torch.no_grad():
                module(x)

        def training(x: torch.Tensor = x) -> None:
            module(x)[0].sum().backward()

        for name, run in (("forward", forward), ("training", training)):
            run()
            times[f"{name} T={steps}"] = 1e3 * statistics.median(milliseconds(run, device) for _ in range(REPEATS))
    for name in ("forward", "training"):
        difference = times[f"{name} T={LENGTHS[1]}"] - times[f"{name} T={LENGTHS[0]}"]
        times[f"{name} step"] = difference / (LENGTHS[1] - LENGTHS[0])
    return {name: round(value, 3) for name, value in times.items()}


def run_rows(device: str, out: TextIO) -> None:
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for row in rows(device):
        for engine, make in engines(row, device):
            if device == "cuda":
                fastrnn.cuda.set_driver(engine if engine in ("cluster", "grid", "stepwise") else "auto")
            try:
                line = {**row._asdict(), "engine": engine, "microseconds": measure(make(), row, device)}
            except RuntimeError as problem:
                line = {**row._asdict(), "engine": engine, "failed": str(problem).splitlines()[0]}
            text = json.dumps(line)
            for file in {out, sys.stdout}:
                print(text, file=file, flush=True)


def profile(device: str) -> None:
    """Profile the kernels of a training step at the two sizes with the highest priority."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    for H in (512, 1024) if device == "cuda" else (32,):
        module = fastrnn.LSTM(H, H).to(device, torch.bfloat16)
        x = torch.randn(64, 16, H, device=device, dtype=torch.bfloat16)
        module(x)[0].sum().backward()
        with torch.profiler.profile(activities=kinds) as seen:
            module(x)[0].sum().backward()
        sort = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
        print(seen.key_averages().table(sort_by=sort, row_limit=12, max_name_column_width=60), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the GPU drivers and torch.nn.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="also write the lines of JSON to this file")
    parser.add_argument("--profile", action="store_true", help="profile two training steps instead")
    args = parser.parse_args(argv)
    if args.profile:
        profile(args.device)
    elif args.out is None:
        run_rows(args.device, sys.stdout)
    else:
        with args.out.open("w", encoding="utf-8") as out:
            run_rows(args.device, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
