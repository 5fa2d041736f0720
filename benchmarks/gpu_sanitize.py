"""Calls for compute-sanitizer: every driver once over small sequences, forward and backward, on one GPU.

    compute-sanitizer --tool racecheck python benchmarks/gpu_sanitize.py

Sizes are odd, so that tiles have partial ends, and large enough for several thread blocks to work together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

import fastrnn
from fastrnn import cuda

STEPS, BATCH, SIZE, HIDDEN = 4, 11, 5, 72
NAMES = {fastrnn.LSTM: "lstm", fastrnn.GRU: "gru", fastrnn.RNN: "rnn_tanh"}


def keywords(form: str) -> dict[str, torch.Tensor]:
    if form == "lengths":
        return {"lengths": torch.arange(BATCH, device="cuda") % (STEPS + 1)}
    if form == "reset":
        reset = torch.zeros(STEPS, BATCH, dtype=torch.bool, device="cuda")
        reset[1::2, ::3] = True
        return {"reset": reset}
    return {}


def cases(driver: str) -> Iterator[tuple[type[torch.nn.Module], torch.dtype, str]]:
    """Yield calls that run each kernel of a driver, and each row layout, once."""
    for form in ("plain", "lengths", "reset"):
        yield fastrnn.LSTM, torch.bfloat16, form
    yield fastrnn.GRU, torch.float32, "reset"
    yield fastrnn.RNN, torch.float16, "plain"
    if driver == "stepwise":
        yield fastrnn.GRU, torch.float64, "lengths"


def run(driver: str, cell: type[torch.nn.Module], dtype: torch.dtype, form: str) -> None:
    torch.manual_seed(0)
    module = cell(SIZE, HIDDEN).to("cuda", dtype)
    x = torch.randn(STEPS, BATCH, SIZE, device="cuda", dtype=dtype, requires_grad=True)
    with cuda.driver(driver):
        y, state = module(x, **keywords(form))
        states = state if isinstance(state, tuple) else (state,)
        torch.autograd.backward((y, *states), (torch.randn_like(y), *map(torch.randn_like, states)))
    torch.cuda.synchronize()


def main() -> int:
    ran = 0
    for driver in ("grid", "cluster", "stepwise"):
        for cell, dtype, form in cases(driver):
            name = f"{driver} {NAMES[cell]} {dtype} {form}"
            found = cuda.explain(NAMES[cell], BATCH, HIDDEN, steps=STEPS, dtype=dtype, driver=driver)
            if not found.possible:
                print(f"{name}: skipped, {found.reason}", flush=True)
                continue
            run(driver, cell, dtype, form)
            print(f"{name}: {found.blocks} blocks", flush=True)
            ran += 1
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
