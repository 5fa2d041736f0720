"""Figures of the theory of vanishing and exploding gradients, through the kernels."""

from __future__ import annotations

import math

import pytest
import torch

import fastrnn
from fastrnn import gallery, init
from fastrnn.functional import LayerWeights, hidden_gradients, sequence

STEPS = 100


@pytest.mark.parametrize(("eigenvalue", "gain"), [(1.1, 13780), (0.9, 2.65e-5)])
@pytest.mark.parametrize("rotated", [False, True])
def test_gain_of_a_linear_recurrence_over_a_hundred_steps(eigenvalue, gain, rotated):
    """λ^100, of the state forwards and of its gradient backwards: 13780 and 2.65e-5."""
    network = gallery.elman_identity(3, 8, dtype=torch.float64)
    init.identity_(network, eigenvalue)
    if rotated:  # all eigenvalues have that absolute value
        init.orthogonal_(network, eigenvalue)
    h = torch.randn(1, 2, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        network.bias_ih_l0.zero_()
        network.bias_hh_l0.zero_()
    _, last = network(torch.zeros(STEPS, 2, 3, dtype=torch.float64), h, backend="fused")
    assert (last.norm() / h.norm()).item() == pytest.approx(eigenvalue**STEPS, rel=1e-9)
    assert (last.norm() / h.norm()).item() == pytest.approx(gain, rel=3e-3)
    direction = torch.randn_like(last)
    (grad,) = torch.autograd.grad(last, h, direction)
    assert (grad.norm() / direction.norm()).item() == pytest.approx(gain, rel=3e-3)
    if not rotated:
        torch.testing.assert_close(grad, eigenvalue**STEPS * direction)


@pytest.mark.parametrize("eigenvalue", [1.1, 0.9])
def test_gain_step_by_step(eigenvalue):
    """∂L/∂h_t grows or shrinks by the eigenvalue at every step, also for a rectified network that stays active."""
    w = LayerWeights(torch.zeros(8, 3), eigenvalue * torch.eye(8))
    grad_final = torch.rand(2, 8)
    x, h = torch.zeros(STEPS, 2, 3), torch.rand(2, 8) + 0.5
    found = hidden_gradients("rnn_relu", x, w, [h], None, [grad_final])
    norms = found.flatten(1).norm(dim=1)
    expected = grad_final.norm() * eigenvalue ** torch.arange(STEPS - 1, -1, -1)
    torch.testing.assert_close(norms, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_lstm_scales_the_gradient_of_its_cell_by_the_forget_gate(dtype):
    """With a forget gate of 0.95, ∂L/∂c over 8 steps is scaled by 0.95⁸ = 0.663, whatever the weights of x are."""
    lstm = fastrnn.LSTM(3, 8, dtype=dtype)
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
        lstm.weight_ih_l0[8:16] = 0
    init.forget_bias_(lstm, math.log(0.95 / 0.05))
    h, c = (torch.randn(1, 2, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    _, (_, last) = lstm(torch.randn(8, 2, 3, dtype=dtype), (h, c), backend="fused")
    direction = torch.randn_like(last)
    (grad,) = torch.autograd.grad(last, c, direction)
    torch.testing.assert_close(grad, 0.95**8 * direction)
    assert pytest.approx(0.6634, abs=1e-4) == 0.95**8


def test_the_forget_gate_step_by_step():
    """With the output gate closed nothing but c carries, and every step has its factor: 0.95^k after k steps."""
    bias = torch.zeros(32)
    bias[8:16], bias[24:] = math.log(0.95 / 0.05), -1e4
    w = LayerWeights(torch.randn(32, 3), torch.zeros(32, 8), bias, torch.zeros(32))
    w.w_ih[8:16] = w.w_ih[24:] = 0
    x = torch.randn(8, 2, 3)
    for steps in range(1, 9):
        c = torch.randn(2, 8, requires_grad=True)
        _, (_, last) = sequence("lstm", x[:steps], w, (torch.zeros(2, 8), c))
        (grad,) = torch.autograd.grad(last.sum(), c)
        torch.testing.assert_close(grad, torch.full((2, 8), 0.95**steps))


def test_clipping_bounds_what_would_explode():
    """At eigenvalue 1.1 the gradient over 100 steps is 13780; cut to 1 at every step it is at most 1.1."""
    w = LayerWeights(torch.zeros(8, 3), 1.1 * torch.eye(8))
    h = (torch.rand(2, 8) + 0.5).requires_grad_()
    x = torch.zeros(STEPS, 2, 3)
    _, (last,) = sequence("rnn_relu", x, w, (h,), clip_state_gradient=1.0)
    (grad,) = torch.autograd.grad(last.sum(), h)
    torch.testing.assert_close(grad, torch.full((2, 8), 1.1))
