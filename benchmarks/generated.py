"""Compare kernels generated from Python (`fastrnn.cell`) with those written by hand: LSTM, GRU and RNN, with backward.

Both belong to one library, so they run in turns in one process, after a check that they agree. Prints medians of
ratios of times, generated to hand-written::

    python benchmarks/generated.py --runs 3
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import fastrnn
from fastrnn.functional import LayerWeights, sequence


@fastrnn.cell(gates="i f g o", states="h c")
def lstm(x, r, s):
    i, f, g, o = (a + b for a, b in zip(x, r, strict=True))
    c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@fastrnn.cell(gates="r z n")
def gru(x, r, s):
    n = torch.tanh(x.n + torch.sigmoid(x.r + r.r) * r.n)
    return n + torch.sigmoid(x.z + r.z) * (s.h - n)


@fastrnn.cell(gates="a")
def rnn_tanh(x, r, s):
    return torch.tanh(x.a + r.a)


def seconds(cell: str, inputs: list[torch.Tensor], seed: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of forward and backward together, and of forward alone."""
    start = time.perf_counter()
    y, _ = sequence(cell, inputs[0], LayerWeights(*inputs[1:]))
    forward = time.perf_counter() - start
    torch.autograd.grad(y, inputs, seed)
    return time.perf_counter() - start, forward


def ratios(by_hand: str, generated: str, T: int, B: int, H: int, gates: int) -> tuple[float, float]:
    shapes = ((T, B, H), (gates * H, H), (gates * H, H), (gates * H,), (gates * H,))
    inputs = [(torch.randn(shape) * (0.05 if k else 1)).requires_grad_() for k, shape in enumerate(shapes)]
    seed, found = torch.randn(T, B, H), []
    for cell in (by_hand, generated):
        y, _ = sequence(cell, inputs[0], LayerWeights(*inputs[1:]))
        found.append([y, *torch.autograd.grad(y, inputs, seed)])
    for a, b in zip(*found, strict=True):
        if (a - b).abs().max() > 1e-4 * (1 + a.abs().max()):
            raise SystemExit(f"{generated} does not agree with {by_hand}")
    rounds = max(9, int(0.25 / seconds(by_hand, inputs, seed)[0]))
    times = [(seconds(by_hand, inputs, seed), seconds(generated, inputs, seed)) for _ in range(rounds)]
    medians = [[statistics.median(pair[k][part] for pair in times) for k in range(2)] for part in range(2)]
    return medians[0][1] / medians[0][0], medians[1][1] / medians[1][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs for the medians (default: 3)")
    runs = parser.parse_args().runs
    print("| cell | B×T×H | both | forward |\n|---|---|---:|---:|")
    for cell in (lstm, gru, rnn_tanh):
        cell.build()
        for B, T, H in ((1, 100, 128), (16, 100, 256), (64, 50, 512)):
            found = [ratios(cell.name, cell.kernels, T, B, H, len(cell.gates)) for _ in range(runs)]
            both, forward = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"| {cell.name} | {B}×{T}×{H} | {both:.2f} | {forward:.2f} |", flush=True)


if __name__ == "__main__":
    main()
