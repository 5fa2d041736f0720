"""Shared by the tests that need a GPU."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch
from problems import Problem
from torch import Tensor

import fastrnn
from fastrnn import _gpu

needs_gpu = pytest.mark.skipif(
    not fastrnn.cuda.is_available(), reason=_gpu.reason or "the tests of the CUDA kernels need a GPU"
)
DRIVERS = ("stepwise", "grid", "cluster")


def drivers_for(problem: Problem, backward: bool = True) -> list[str]:
    """Return the drivers that can run it on the current GPU."""
    found = []
    for driver in DRIVERS:
        ways = [
            fastrnn.cuda.explain(
                problem.cell,
                problem.batch,
                problem.hidden,
                steps=problem.steps,
                dtype=problem.dtype,
                projection=bool(problem.projected),
                backward=way,
                driver=driver,
            )
            for way in ((False, True) if backward else (False,))
        ]
        if all(way.possible for way in ways):
            found.append(driver)
    return found


@dataclass
class GpuProblem(Problem):
    """A problem on a GPU, with the same values as on the CPU."""

    device: str = "cuda"

    def __post_init__(self):
        super().__post_init__()

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.detach().to(self.device).requires_grad_()

        self.x = move(self.x)
        self.weights = type(self.weights)(*(move(w) for w in self.weights))
        self.states = None if self.states is None else tuple(move(s) for s in self.states)
        for name in ("lengths", "reset"):
            if name in self.arguments:
                self.arguments[name] = self.arguments[name].to(self.device)

    def seeds(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [seed.to(self.device) for seed in super().seeds(outputs)]


def runs() -> dict[str, int]:
    return dict(_gpu.module.runs())


def finish(seconds: float = 60.0) -> None:
    """Wait for the GPU. Nothing can stop one that hangs, so then the whole run ends."""
    done = torch.cuda.Event()
    done.record()
    end = time.monotonic() + seconds
    while not done.query():
        if time.monotonic() > end:
            pytest.exit(f"the GPU has not finished within {seconds:.0f} s", returncode=3)
        time.sleep(0.001)


def reset_gpu() -> None:
    """Reset the settings that a test may have changed."""
    _gpu.module.set_driver("auto")
    _gpu.module.limit_machine(0, 0, 0)
    _gpu.module.set_refusing(False)
    _gpu.module.set_poison(False)
