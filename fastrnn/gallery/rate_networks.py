"""Rate networks of neuroscience: leaky currents and rates that are a function of them, by Euler's method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastrnn

#: Δt/τ of Song et al. 2016: 20 ms / 100 ms.
LEAK = 0.2


@fastrnn.cell(gates="v", states="h v", parameters={"alpha": LEAK})
def rate_tanh(x: Any, r: Any, s: Any, p: Any) -> Any:
    """Rate network with rates from −1 to 1; v is the current, h the rate.

        v' = (1 − α)*v + α*(W·x + b + R·h + b_r)
        h' = tanh(v')

    Sompolinsky, Crisanti & Sommers, Chaos in random neural networks, 1988, with inputs as in Sussillo & Abbott,
    Generating coherent patterns of activity from chaotic neural networks, 2009; α = Δt/τ.
    Shapes: W, R (H, I), (H, H); α (H). Initialisation: W, R, b within ±1/√H, α 0.2; to fix α,
    ``network.alpha_l0.requires_grad_(False)``. The classical R is normal with standard deviation g/√H, chaotic for g >
    1.
    """
    v = s.v + p.alpha * (x.v + r.v - s.v)
    return torch.tanh(v), v


@fastrnn.cell(gates="v", states="h v", parameters={"alpha": LEAK})
def rate_relu(x: Any, r: Any, s: Any, p: Any) -> Any:
    """Rate network with non-negative rates; v is the current, h the rate.

        v' = (1 − α)*v + α*(W·x + b + R·h + b_r)
        h' = relu(v')

    Song, Yang & Wang, Training excitatory-inhibitory recurrent neural networks for cognitive tasks, 2016, without the
    noise (see `rate_noisy`) and the constraint on each unit's sign (for that, project R after each update); α = Δt/τ.
    Shapes: W, R (H, I), (H, H); α (H). Initialisation: W, R, b within ±1/√H, α 0.2; to fix α,
    ``network.alpha_l0.requires_grad_(False)``.
    """
    v = s.v + p.alpha * (x.v + r.v - s.v)
    return torch.relu(v), v


def gaussian(like: Tensor, training: bool) -> Tensor:
    """Draw noise of standard deviation 1 for every batch row, time step and unit in training; zeros otherwise."""
    return torch.randn_like(like) if training else torch.zeros_like(like)


@fastrnn.cell(gates="v", states="h v", parameters={"alpha": LEAK, "sigma": 0.15}, inputs={"noise": gaussian})
def rate_noisy(x: Any, r: Any, s: Any, p: Any) -> Any:
    """Rate network with noisy currents: ξ is normal with standard deviation 1, for every batch row, step and unit.

        v' = (1 − α)*v + α*(W·x + b + R·h + b_r) + √(2*α)*σ*ξ
        h' = relu(v')

    Song, Yang & Wang 2016, see `rate_relu`. The noise is added in training (``network.train()``), not in evaluation.
    Shapes: W, R (H, I), (H, H); α, σ (H). Initialisation: W, R, b within ±1/√H, α 0.2 and σ 0.15 as in the paper; they
    are learned unless ``network.alpha_l0.requires_grad_(False)`` and so on. α must stay positive.
    """
    v = s.v + p.alpha * (x.v + r.v - s.v) + torch.sqrt(2 * p.alpha) * p.sigma * x.noise
    return torch.relu(v), v
