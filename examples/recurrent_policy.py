"""Reinforcement learning with memory: balance a pole without being told how fast anything moves.

Cart and pole are those of Barto, Sutton & Anderson, Neuronlike adaptive elements that can solve difficult learning
control problems, 1983, but only the two positions are observed. A policy with memory can tell the speeds; one without
cannot. Such tasks: Wierstra, Foerster, Peters & Schmidhuber, Solving deep memory POMDPs with recurrent policy
gradients, 2007. The objective: Schulman et al., Proximal policy optimization algorithms, 2017 (arXiv:1707.06347).

When a pole falls the next episode begins, in the middle of a row of the batch: `reset=` is true at its first step.
The state goes back to zero there, inside the kernel, and one call does for all steps of all episodes. The policy
without memory is the same network, with a reset at every step.

    python examples/recurrent_policy.py
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastrnn


class CartPoles:
    """B carts with poles. A step is 0.02 s; an episode ends when a cart is 2.4 m off or a pole leans by 12 degrees."""

    def __init__(self, batch: int) -> None:
        self.state = 0.1 * torch.rand(batch, 4) - 0.05  # position, velocity, angle, angular velocity

    def observe(self) -> Tensor:
        """The positions of cart and pole (B, 2), about ±3 at the most."""
        return self.state[:, [0, 2]] * torch.tensor([1.2, 15.0])

    def step(self, right: Tensor) -> Tensor:
        """Pushes with 10 N, right where (B) is 1, else left; (B) whose pole has fallen: those begin anew."""
        _, velocity, angle, spin = self.state.unbind(-1)
        push = (20.0 * right - 10.0 + 0.05 * spin.square() * angle.sin()) / 1.1  # 1.1 kg; the pole: 0.1 kg, 1 m
        turn = (9.8 * angle.sin() - angle.cos() * push) / (2 / 3 - 0.05 * angle.cos().square() / 1.1)
        self.state += 0.02 * torch.stack([velocity, push - 0.05 * turn * angle.cos() / 1.1, spin, turn], -1)
        fallen = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > 0.2095)
        self.state[fallen] = 0.1 * torch.rand(int(fallen.sum()), 4) - 0.05
        return fallen


class Policy(nn.Module):
    """Two logits and the value, from a GRU's state."""

    def __init__(self, hidden: int, memory: bool) -> None:
        super().__init__()
        self.memory = memory
        self.recurrent = fastrnn.GRU(2, hidden)
        self.heads = nn.Linear(hidden, 3)

    def forward(self, x: Tensor, reset: Tensor) -> Tensor:
        """x (T, B, 2), reset (T, B); (T, B, 3)."""
        return self.heads(self.recurrent(x, reset=reset if self.memory else torch.ones_like(reset))[0])

    def step(self, x: Tensor, state: Tensor | None, first: Tensor) -> tuple[Tensor, Tensor]:
        """One step, x (B, 2), ``first`` (B) as ``reset``; (B, 3) and the state."""
        if state is not None:
            state = state.masked_fill(first.unsqueeze(-1) | (not self.memory), 0.0)
        y, state = self.recurrent.step(x, state)
        return self.heads(y), state


class Rollout(NamedTuple):
    x: Tensor  # (T, B, 2)
    reset: Tensor  # (T, B), true at an episode's first step
    action: Tensor  # (T, B, 1)
    log_prob: Tensor  # (T, B, 1)
    value: Tensor  # (T, B)
    fallen: Tensor  # (T, B), true at an episode's last step


@torch.no_grad()
def collect(policy: Policy, steps: int, batch: int, greedy: bool = False) -> Rollout:
    """Every row starts with a new episode, in state zero: what `reset` goes back to."""
    world, state, first, rows = CartPoles(batch), None, torch.ones(batch, dtype=torch.bool), []
    for _ in range(steps):
        x = world.observe()
        out, state = policy.step(x, state, first)
        log_probs = out[:, :2].log_softmax(-1)
        action = log_probs.argmax(-1, True) if greedy else torch.multinomial(log_probs.exp(), 1)
        fallen = world.step(action.squeeze(-1))
        rows.append((x, first, action, log_probs.gather(-1, action), out[:, 2], fallen))
        first = fallen
    return Rollout(*map(torch.stack, zip(*rows, strict=True)))


def survival(rollout: Rollout) -> float:
    """Steps until the first fall, mean over the rows; T for a row without."""
    return (rollout.fallen.cumsum(0) == 0).sum(0).float().mean().item()


def advantages(rollout: Rollout, discount: float = 0.98, decay: float = 0.95) -> Tensor:
    """Return by how much actions exceeded the value (T, B): generalised advantage estimation (Schulman et al. 2016)."""
    found, ahead = torch.zeros_like(rollout.value), torch.zeros(1)
    following = rollout.value[-1]  # what lies behind the last step is taken to be as good as it
    for t in reversed(range(len(found))):
        stands = 1.0 - rollout.fallen[t].float()  # the reward is (1 - discount)·stands, so values are from 0 to 1
        ahead = stands * (1 - discount + discount * (following + decay * ahead)) - rollout.value[t]
        found[t], following = ahead, rollout.value[t]
    return found


def train(memory: bool, args: argparse.Namespace) -> float:
    """Trains a policy; for how many of 500 steps it then keeps the pole up."""
    torch.manual_seed(args.seed)
    print(f"{'with' if memory else 'without'} memory:")
    policy = Policy(32, memory)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.lr)
    for update in range(1, args.updates + 1):
        rollout = collect(policy, steps=200, batch=32)
        advantage = advantages(rollout)
        wanted = advantage + rollout.value
        advantage = ((advantage - advantage.mean()) / advantage.std()).unsqueeze(-1)
        for _ in range(10):
            out = policy(rollout.x, rollout.reset)  # all T steps and all their resets in one call
            ratio = (out[..., :2].log_softmax(-1).gather(-1, rollout.action) - rollout.log_prob).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = nn.functional.mse_loss(out[..., 2], wanted) - gain
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if update % 5 == 0:
            print(f"  update {update}: up for {survival(rollout):.0f} of 200 steps, {rollout.fallen.sum()} falls")
    return survival(collect(policy, 500, 200, greedy=True))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="A pole balanced from positions alone.")
    parser.add_argument("--updates", type=int, default=40, help="each on 200 steps of 32 environments (default: 40)")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate (default: 5e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer updates, within seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.updates = 15
    torch.set_num_threads(args.threads)
    found = {"with": train(True, args), "without": train(False, args)}
    print(f"mean steps without a fall, of 500: with memory {found['with']:.0f}, without {found['without']:.0f}")
    return found


if __name__ == "__main__":
    main()
