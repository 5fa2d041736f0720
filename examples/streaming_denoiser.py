"""Streaming: a network is trained on whole sequences, then cleans a signal sample by sample, as it comes in.

The signal is a melody: tones of random length and pitch, which sound and fade; the noise is white and as loud. A GRU
gives the clean sample at once, without a look ahead. For comparison, the best linear filter of the last 64 samples (a
Wiener filter: Wiener, Extrapolation, interpolation, and smoothing of stationary time series, 1949), fitted by least
squares to the same kind of signal: it cannot follow the pitch, since one filter has to serve all tones. Networks that
clean speech in real time work this way: Valin, A hybrid DSP/deep learning approach to real-time full-band speech
enhancement, 2018 (arXiv:1709.08243).

`fastrnn.Stream` keeps weights and state to itself and takes one sample in a few microseconds.

    python examples/streaming_denoiser.py
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn

TAPS = 64


def melodies(length: int, batch: int) -> tuple[Tensor, Tensor]:
    """Noisy and clean signals, (T, B, 1) each."""
    begins = torch.rand(length, batch) < 1 / 120  # a tone lasts 120 samples in the mean
    begins[0] = True
    tone = begins.cumsum(0) - 1
    start = torch.where(begins, torch.arange(length).unsqueeze(-1), 0).cummax(0).values
    age = torch.arange(length).unsqueeze(-1) - start  # samples since the tone has begun
    period = (8 * 2 ** (3 * torch.rand(length, batch))).gather(0, tone)  # three octaves, 8 to 64 samples
    clean = torch.sin(2 * math.pi * age / period) * torch.exp(-age / 200)
    noisy = clean + 0.6 * torch.randn(length, batch)
    return noisy.unsqueeze(-1), clean.unsqueeze(-1)


class Denoiser(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.recurrent = fastrnn.GRU(1, hidden, num_layers=2)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        """Whole sequences, (T, B, 1) to (T, B, 1)."""
        return self.readout(self.recurrent(noisy)[0])


class StreamingDenoiser:
    """The same for one signal, one sample at a time."""

    def __init__(self, model: Denoiser) -> None:
        self.stream = fastrnn.Stream(model.recurrent, batch=1)
        self.readout = model.readout

    @torch.no_grad()
    def step(self, sample: Tensor) -> Tensor:
        """(1, 1) to (1, 1)."""
        return self.readout(self.stream.step(sample))


def decibels(estimate: Tensor, clean: Tensor) -> float:
    """The signal-to-noise ratio: the signal's power over that of what is wrong with the estimate."""
    return 10 * math.log10(clean.square().sum() / (estimate - clean).square().sum())


def windows(noisy: Tensor) -> Tensor:
    """The last TAPS samples at each time, (T, B, 1) to (T, B, TAPS)."""
    return F.pad(noisy.squeeze(-1).T, (TAPS - 1, 0)).unfold(-1, TAPS, 1).transpose(0, 1)


def fit_filter(length: int, batch: int) -> Tensor:
    """The linear filter (TAPS, 1) with the least squared error."""
    noisy, clean = melodies(length, batch)
    return torch.linalg.lstsq(windows(noisy).flatten(0, 1), clean.flatten(0, 1)).solution


def train(model: Denoiser, args: argparse.Namespace) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for step in range(1, args.steps + 1):
        noisy, clean = melodies(args.length, args.batch)
        loss = F.mse_loss(model(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(args.steps // 5, 1) == 0:
            print(f"  step {step:,}: loss {loss.item():.4f}", flush=True)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Noise is removed from a signal as it comes in.")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units H (default: 64)")
    parser.add_argument("--length", type=int, default=400, help="time steps T of the training sequences (default: 400)")
    parser.add_argument("--batch", type=int, default=32, help="batch rows B (default: 32)")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate (default: 5e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="a smaller network and fewer steps, within seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.hidden, args.length, args.batch, args.steps = 32, 250, 16, 300
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = Denoiser(args.hidden)
    train(model, args)

    with torch.no_grad():
        noisy, clean = melodies(2000, 50)  # longer than anything trained on
        found = {"before": decibels(noisy, clean), "after": decibels(model(noisy), clean)}
        found["filter"] = decibels(windows(noisy) @ fit_filter(args.length, 200), clean)
        signal = noisy[:, :1]  # (T, 1, 1): one of them, as it comes in
        whole = model(signal)
    streaming, bare = StreamingDenoiser(model), fastrnn.Stream(model.recurrent, batch=1)
    start = time.perf_counter()
    streamed = torch.stack([streaming.step(sample) for sample in signal])
    middle = time.perf_counter()
    for sample in signal:
        bare.step(sample)
    end = time.perf_counter()
    found["difference"] = (streamed - whole).abs().max().item()
    print(f"signal to noise: {found['before']:.1f} dB before, {found['after']:.1f} dB after the network, ", end="")
    print(f"{found['filter']:.1f} dB after the best linear filter of {TAPS} samples")
    print(f"streamed and whole sequence differ by {found['difference']:.1e} at most")
    step, recurrent = (1e6 * seconds / len(signal) for seconds in (middle - start, end - middle))
    print(f"{step:.1f} µs a sample; for the recurrent layers alone {recurrent:.1f} µs")
    return found


if __name__ == "__main__":
    main()
