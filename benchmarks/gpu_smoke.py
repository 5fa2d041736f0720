"""Check the GPU drivers against the reference in float64, forward and backward, one line per case.

    python benchmarks/gpu_smoke.py                            # each driver, cell and dtype at chosen shapes
    python benchmarks/gpu_smoke.py --random 1000 --seconds 45

A case's line begins before it runs and ends with its error, so that a hang or a crash shows the case. Exit status 1 if
an error exceeds its limit. `--device cpu` runs the same cases with the CPU kernels, as a rehearsal.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import fastrnn

MODULES = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn_tanh": fastrnn.RNN}
#: Largest error of an output or gradient, relative to its largest element.
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
FORMS = ("plain", "lengths", "reset", "packed")


@dataclass(frozen=True)
class Case:
    cell: str
    T: int
    B: int
    H: int
    dtype: torch.dtype
    form: str = "plain"
    driver: str = "auto"

    @property
    def text(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.driver:8} {self.cell:8} {dtype:8} {self.form:7} T={self.T} B={self.B} H={self.H}"


def chosen(drivers: tuple[str, ...]) -> Iterator[Case]:
    """Yield every driver with every dtype, cell and row layout, and the sizes that the drivers are made for."""
    for driver in drivers:
        for dtype in BOUNDS:
            yield Case("lstm", 7, 11, 72, dtype, driver=driver)
        for cell in ("gru", "rnn_tanh"):
            yield Case(cell, 7, 35, 40, torch.bfloat16, driver=driver)
        for form in FORMS[1:]:
            yield Case("lstm", 7, 11, 72, torch.bfloat16, form, driver)
        for H in (512, 1024):
            yield Case("lstm", 20, 16, H, torch.bfloat16, driver=driver)


def drawn(count: int) -> Iterator[Case]:
    draw = random.Random(0)
    for _ in range(count):
        T, B, H = draw.randint(1, 40), draw.choice([1, 3, 8, 16, 17, 64, 100]), draw.randint(1, 700)
        yield Case(draw.choice(list(MODULES)), T, B, H, draw.choice(list(BOUNDS)), draw.choice(FORMS))


def keywords(case: Case, device: str) -> dict[str, torch.Tensor]:
    if case.form == "lengths":
        return {"lengths": (torch.arange(case.B) % (case.T + 1)).to(device)}
    if case.form == "reset":
        return {"reset": (torch.arange(case.T * case.B).view(case.T, case.B) % 3 == 1).to(device)}
    return {}


def results(module: torch.nn.Module, case: Case, x: torch.Tensor, more: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the output, the final states, and the gradients of the input and the weights."""
    x = x.detach().requires_grad_()
    given: object = x
    if case.form == "packed":
        lengths = [max(1, case.T - k % case.T) for k in range(case.B)]
        given = torch.nn.utils.rnn.pack_padded_sequence(x, sorted(lengths, reverse=True))
    y, state = module(given, **more)
    states = state if isinstance(state, tuple) else (state,)
    out = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
    loss = out.float().square().sum() + sum(s.float().sin().sum() for s in states)
    grads = torch.autograd.grad(
        loss if x.dtype != torch.float64 else _double_loss(out, states), [x, *module.parameters()]
    )
    return [out.detach(), *(s.detach() for s in states), *grads]


def _double_loss(out: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return out.square().sum() + sum(s.sin().sum() for s in states)


def error_of(case: Case, device: str) -> float:
    """Return the largest relative error of all results."""
    torch.manual_seed(case.T * case.H)
    module = MODULES[case.cell](5, case.H).to(device, case.dtype)
    exact = MODULES[case.cell](5, case.H).to(device, torch.float64)
    exact.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    x = torch.randn(case.T, case.B, 5, device=device, dtype=case.dtype)
    more = keywords(case, device)
    chosen_driver = fastrnn.cuda.driver(case.driver) if device == "cuda" else contextlib.nullcontext()
    with chosen_driver:
        found = results(module, case, x, more)
    wanted = results(exact, case, x.double(), {**more, "backend": "reference"})
    if device == "cuda":
        torch.cuda.synchronize()
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        worst = max(worst, float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)))
    return worst if worst == worst else float("inf")


def possible(case: Case, device: str) -> bool:
    if device != "cuda" or case.driver == "auto":
        return True
    return all(
        fastrnn.cuda.explain(
            case.cell, case.B, case.H, steps=case.T, dtype=case.dtype, backward=backward, driver=case.driver
        ).possible
        for backward in (False, True)
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Parity of the GPU drivers with the reference in float64.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--random", type=int, default=0, help="random cases to run instead of the chosen ones")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after this time")
    args = parser.parse_args(argv)
    end, wrong, ran = time.monotonic() + args.seconds, 0, 0
    drivers = ("stepwise", "grid", "cluster") if args.device == "cuda" else ("auto",)
    for case in drawn(args.random) if args.random else chosen(drivers):
        if time.monotonic() > end:
            break
        if not possible(case, args.device):
            print(f"{case.text}: not possible", flush=True)
            continue
        print(f"{case.text}: ", end="", flush=True)
        error = error_of(case, args.device)
        right = error <= BOUNDS[case.dtype]
        wrong, ran = wrong + (not right), ran + 1
        print(f"{error:.1e}{'' if right else ' WRONG'}", flush=True)
    print(f"{ran} cases, {wrong} wrong")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
