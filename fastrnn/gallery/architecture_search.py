"""Cells found by architecture search."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn


@fastrnn.cell(gates="g0 g1 g2 g3 g4 g5 g6 g7", states="h c")
def nas(x: Any, r: Any, s: Any) -> Any:
    """NAS cell, with ak = W_k·x + b_k and mk = R_k·h + b_rk.

        p0 = σ(a0 + m0)
        p1 = relu(a1 + m1)
        p2 = σ(a2 + m2)
        p3 = relu(a3*m3)
        p4 = tanh(a4 + m4)
        p5 = σ(a5 + m5)
        p6 = tanh(a6 + m6)
        p7 = σ(a7 + m7)
        c' = tanh(tanh(p0*p1) + c) * tanh(p2 + p3)
        h' = tanh(c' * tanh(tanh(p4*p5) + σ(p6 + p7)))

    Zoph & Le, Neural architecture search with reinforcement learning, 2017, as in TensorFlow's NASCell. Because of the
    product in p3 the recurrent bias is not equivalent to a second input bias.
    Shapes: W (8·H, I), R (8·H, H), blocks g0 … g7. Initialisation: all within ±1/√H, as torch.nn.
    """
    (a0, a1, a2, a3, a4, a5, a6, a7), (m0, m1, m2, m3, m4, m5, m6, m7) = x, r
    p0, p1 = torch.sigmoid(a0 + m0), torch.relu(a1 + m1)
    p2, p3 = torch.sigmoid(a2 + m2), torch.relu(a3 * m3)
    p4, p5 = torch.tanh(a4 + m4), torch.sigmoid(a5 + m5)
    p6, p7 = torch.tanh(a6 + m6), torch.sigmoid(a7 + m7)
    c = torch.tanh(torch.tanh(p0 * p1) + s.c) * torch.tanh(p2 + p3)
    return torch.tanh(c * torch.tanh(torch.tanh(p4 * p5) + torch.sigmoid(p6 + p7))), c
