"""Train at torch's float32 matmul precisions: does a network reach the loss that it reaches in float32?

    python benchmarks/precision_training.py --precision highest medium --seeds 3 --json out.json

Two tasks: the adding problem (examples/adding_problem.py: LSTM of 128 units, T = 100) and the benchmark's character
language model (two LSTM layers of 256). Each run begins with the same weights and sees the same data at every
precision. Shown are the last errors of the adding problem and the steps until it counts as solved, and the mean loss
of the language model's last tenth of steps. The settings apply to all of torch, linear layers included. A processor
that has nothing for a precision computes in float32: the report names its instruction set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import fastrnn
from fastrnn.apps.bench import environment, language_model
from fastrnn.apps.bench.engines import ENGINES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from adding_problem import SOLVED, Adder, draw, lstm

LENGTH, HIDDEN, BATCH = 100, 128, 64


def adding(seed: int, steps: int) -> dict[str, Any]:
    """The test error after every 50 steps, and the first step at which it is below SOLVED."""
    torch.manual_seed(seed)
    model = Adder(lstm(HIDDEN, LENGTH), HIDDEN)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x_test, y_test = draw(LENGTH, 1000)
    errors = []
    for step in range(1, steps + 1):
        x, y = draw(LENGTH, BATCH)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            with torch.no_grad():
                errors.append(F.mse_loss(model(x_test), y_test).item())
    solved = next((50 * (i + 1) for i, error in enumerate(errors) if error < SOLVED), None)
    return {"last": statistics.median(errors[-5:]), "solved_after": solved, "errors": errors}


def language(seed: int, steps: int) -> dict[str, Any]:
    text = language_model.read_text(None)
    settings = language_model.ModelSettings(steps=steps)
    _, losses = language_model.Training(ENGINES["fastrnn"], text, settings, seed).run(steps)
    return {"last": language_model.final_loss(losses), "losses": [round(value, 5) for value in losses[::10]]}


TASKS = {"adding": adding, "language": language}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=("highest", "high", "medium"), default=["highest", "medium"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each; default: 3")
    parser.add_argument("--steps", type=int, default=1000, help="of training; default: 1000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    rows = []
    for task in args.tasks:
        for seed in range(args.seeds):
            for precision in args.precision:
                torch.set_float32_matmul_precision(precision)
                row = {"task": task, "seed": seed, "precision": precision, **TASKS[task](seed, args.steps)}
                rows.append(row)
                solved = f", solved after {row['solved_after']} steps" if "solved_after" in row else ""
                print(f"{task} seed {seed} {precision}: {row['last']:.5f}{solved}", flush=True)
    if args.json is not None:
        result = {"environment": environment.collect(), "capability": fastrnn._C.capability(), "rows": rows}
        args.json.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
