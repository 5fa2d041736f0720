"""The adding problem: two of T numbers are marked; what is their sum? Does a network remember the first for so long?

Each step of the input is a number from 0 to 1 and a mark, which is 1 at one step of either half and 0 elsewhere.
Always answering 1 gives a mean squared error of 1/6 = 0.167. Less than 0.01 counts as solved here.

The task: Hochreiter & Schmidhuber, Long short-term memory, 1997, in the form of Le, Jaitly & Hinton, A simple way to
initialize recurrent networks of rectified linear units, 2015 (arXiv:1504.00941), section 4.1: there LSTM and IRNN
solve T = 150, and a tanh network does not. Arjovsky, Shah & Bengio, Unitary evolution recurrent neural networks, 2016
(arXiv:1511.06464), go up to T = 750.

    python examples/adding_problem.py --cells lstm irnn tanh
    python examples/adding_problem.py --cells gru --length 750
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn
from fastrnn import gallery

BASELINE, SOLVED = 1 / 6, 0.01  # the variance of a sum of two uniform numbers; the error that counts as solved


def lstm(hidden: int, length: int) -> nn.Module:
    """Units that begin by keeping what they have for 1 to T steps (Tallec & Ollivier 2018, arXiv:1804.11188)."""
    return fastrnn.init.chrono_(fastrnn.LSTM(2, hidden), length)


def lstm_bias_1(hidden: int, length: int) -> nn.Module:
    """The usual first weights, and the forget gate's bias 1 (Jozefowicz et al. 2015)."""
    return fastrnn.init.forget_bias_(fastrnn.LSTM(2, hidden), 1.0)


def gru(hidden: int, length: int) -> nn.Module:
    """As `lstm`, for the gate z, which keeps the old state."""
    return fastrnn.init.chrono_(fastrnn.GRU(2, hidden), length)


def irnn(hidden: int, length: int) -> nn.Module:
    """Rectified units whose recurrent matrix begins as the identity, with zero bias (Le et al. 2015)."""
    network = fastrnn.RNN(2, hidden, nonlinearity="relu")
    nn.init.normal_(network.weight_ih_l0, std=4.5 / length)
    return fastrnn.init.identity_(network)


def np_rnn(hidden: int, length: int) -> nn.Module:
    """Rectified units; all eigenvalues of the recurrent matrix but one, 1, are below 1 (Talathi & Vartak 2015)."""
    network = fastrnn.RNN(2, hidden, nonlinearity="relu")
    nn.init.normal_(network.weight_ih_l0)
    return fastrnn.init.np_rnn_(network)


def tanh(hidden: int, length: int) -> nn.Module:
    """The usual network with small random weights."""
    network = fastrnn.RNN(2, hidden)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.03)
    return network


def indrnn(hidden: int, length: int) -> nn.Module:
    """Two layers of units that see only themselves: one chooses, one adds up (Li et al. 2018)."""
    network = gallery.indrnn(2, hidden, num_layers=2)
    nn.init.ones_(network.get_parameter("u_l1"))
    return network


def min_gru(hidden: int, length: int) -> nn.Module:
    """A gate z that sees the input only, with a bias as for the GRU; here 1 - z is what is kept (Feng et al. 2024)."""
    return fastrnn.init.chrono_(gallery.min_gru(2, hidden), length, input="z")


NETWORKS = {make.__name__: make for make in (lstm, lstm_bias_1, gru, irnn, np_rnn, tanh, indrnn, min_gru)}


class Adder(nn.Module):
    def __init__(self, recurrent: nn.Module, hidden: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, B, 2); the sum (B)."""
        y, _ = self.recurrent(x)
        return self.readout(y[-1]).squeeze(-1)


def draw(length: int, batch: int) -> tuple[Tensor, Tensor]:
    """Numbers and marks (T, B, 2), and the sum of the marked numbers (B)."""
    numbers, marks, half = torch.rand(length, batch), torch.zeros(length, batch), length // 2
    marks.scatter_(0, torch.stack([torch.randint(half, (batch,)), torch.randint(half, length, (batch,))]), 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def train(name: str, args: argparse.Namespace) -> float:
    """Trains until the error on sequences never trained on is below SOLVED, and returns that error."""
    torch.manual_seed(args.seed)
    model = Adder(NETWORKS[name](args.hidden, args.length), args.hidden)
    # The longer the sequence, the sooner rectified units explode.
    suits = {"irnn": min(1.5e-3, 6.4 / args.length**2), "np_rnn": min(1e-3, 0.08 / args.length), "tanh": 1e-3}
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr or suits.get(name, 5e-3))
    x_test, y_test = draw(args.length, 1000)
    start, error = time.perf_counter(), float("nan")
    for step in range(1, args.steps + 1):
        x, y = draw(args.length, args.batch)
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps:
            with torch.no_grad():
                error = F.mse_loss(model(x_test), y_test).item()
            if error < SOLVED:
                break
    verdict, seconds = "solved" if error < SOLVED else "not solved", time.perf_counter() - start
    print(f"{name:8} {verdict:10} error {error:.4f} after {step:,} steps, {seconds:.0f} s", flush=True)
    return error


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="The adding problem.")
    parser.add_argument("--cells", nargs="+", choices=NETWORKS, default=["lstm", "irnn", "tanh"])
    parser.add_argument("--length", type=int, default=150, help="time steps T (default: 150)")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units H (default: 64)")
    parser.add_argument("--batch", type=int, default=32, help="batch rows B (default: 32)")
    parser.add_argument("--steps", type=int, default=4000, help="at most (default: 4000); training stops when solved")
    parser.add_argument("--lr", type=float, help="learning rate; default: chosen for each cell")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="T = 30, within seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.length, args.hidden, args.steps = 30, 32, 1200
    torch.set_num_threads(args.threads)
    print(f"T = {args.length}; the constant answer 1 has a mean squared error of {BASELINE:.3f}")
    return {name: train(name, args) for name in args.cells}


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # gradients that vanish become denormal numbers, which take five times as long
    main()
