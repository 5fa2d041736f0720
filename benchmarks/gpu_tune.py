"""Measures the persistent drivers on a GPU, way by way to cut a call, and fits the constants of csrc/cuda/plan.cpp.

    python benchmarks/gpu_tune.py --out build/gpu-tune.json --seconds 240

The most valuable shapes come first; every measurement is written at once, and a second run with the same --out goes on
where the first one stopped. Beside each shape: the step-wise driver, cuDNN (torch.nn, input product included), and, of
the shapes that are aimed at, kernels that leave one stage of a step out (csrc/cuda/stages.h; needs nvcc). Microseconds
of a step are the difference of two lengths over the difference of their steps. Ends with the constants, as plan.cpp has
them. Exit status 1 if there is no GPU that the kernels can run on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_fit
import gpu_meter
from gpu_plan import Machine, constants
from gpu_points import LENGTHS, LIBRARY, CannotMeasureError, Meter, Point, points, shapes


class Log:
    """Measurements in a file that is whole at any time.

    Raises:
        ValueError: the file holds those of another GPU, or something else.
    """

    def __init__(self, path: Path, gpu: str) -> None:
        self.path, self.gpu = path, gpu
        self.found: dict[Point, dict[str, Any]] = {}
        if not path.is_file():
            return
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            before = document["gpu"]
            self.found = {Point(**one["point"]): one for one in document["measured"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: expected what an earlier run has written, got something else") from None
        if before != gpu:
            raise ValueError(f"{path}: expected measurements of {gpu}, got those of {before}; name another file")

    def add(self, point: Point, microseconds: float | None, reason: str = "") -> None:
        self.found[point] = {"point": asdict(point), "microseconds": microseconds, "reason": reason}
        self.write({})

    def write(self, more: dict[str, Any]) -> None:
        document = {"gpu": self.gpu, "lengths": LENGTHS, **more, "measured": list(self.found.values())}
        part = self.path.with_name(self.path.name + ".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def measured(self) -> list[gpu_fit.Measured]:
        """What the fit is made of: whole kernels of ours."""
        return [
            gpu_fit.Measured(point.problem, point.tiling(), one["microseconds"])
            for point, one in self.found.items()
            if one["microseconds"] is not None and not point.without and point.driver != LIBRARY
        ]


def measure(m: Machine, meter: Meter, log: Log, seconds: float, clock: Callable[[], float] = time.monotonic) -> int:
    """Measures what is not in the log while there is time. Returns how many points are left."""
    end = clock() + seconds
    left = [point for point in points(m) if point not in log.found]
    for done, point in enumerate(left):
        if clock() >= end:
            return len(left) - done
        try:
            log.add(point, meter(point))
        except CannotMeasureError as reason:
            log.add(point, None, str(reason))
    return 0


def summary(log: Log) -> list[str]:
    """The best of each driver for each shape, and what the stages cost."""
    lines = ["| | H | B | cluster | grid | step-wise | cuDNN |", "|---|---:|---:|---:|---:|---:|---:|"]
    for cell, fmt, B, H, backward in shapes():
        best: dict[str, float] = {}
        for point, one in log.found.items():
            same = (point.cell, point.fmt, point.B, point.H, point.backward) == (cell, fmt, B, H, backward)
            if same and not point.without and one["microseconds"] is not None:
                best[point.driver] = min(one["microseconds"], best.get(point.driver, float("inf")))
        if best:
            times = [f"{best[d]:.2f}" if d in best else "–" for d in ("cluster", "grid", "stepwise", LIBRARY)]
            what = f"{cell} {fmt} {'backward' if backward else 'forward'}"
            lines.append(f"| {what} | {H} | {B} | {' | '.join(times)} |")
    for point, one in log.found.items():
        if point.without and one["microseconds"] is not None:
            whole = log.found.get(Point(**{**asdict(point), "without": ""}))
            if whole is not None and whole["microseconds"] is not None:
                spared = whole["microseconds"] - one["microseconds"]
                what = f"{point.cell} {point.fmt} B={point.B} H={point.H} {'backward' if point.backward else 'forward'}"
                way = f"{point.driver} {point.row_slices}×{point.unit_slices}"
                lines.append(f"- {what}, {way}: without {point.without} {spared:.2f} µs less")
    return lines


def main(
    argv: list[str] | None = None,
    meter_of: Callable[[], tuple[str, Machine, Meter]] = gpu_meter.on_this_machine,
) -> int:
    parser = argparse.ArgumentParser(description="Measure the GPU drivers and fit plan.cpp's constants.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-tune.json"), help="JSON, read if it is there")
    parser.add_argument("--seconds", type=float, default=240, help="stop measuring after that long, default 240")
    args = parser.parse_args(argv)
    try:
        gpu, machine, meter = meter_of()
        log = Log(args.out, gpu)
    except (CannotMeasureError, ValueError) as problem:
        print(f"gpu_tune: {problem}", file=sys.stderr)
        return 1
    left = measure(machine, meter, log, args.seconds)
    print("\n".join(summary(log)))
    try:
        found = gpu_fit.fit(log.measured(), machine, constants())
    except ValueError as problem:
        print(f"gpu_tune: no fit: {problem}", file=sys.stderr)
        return 1
    log.write({"constants": found.constants, "fitted": found.fitted, "left": left})
    print(f"\n{gpu}; relative errors of the fit: median {found.median:.0%}, largest {found.worst:.0%}")
    print(gpu_fit.lines(found))
    if left:
        print(f"{left} points are left; the same command goes on with them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
