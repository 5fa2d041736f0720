"""Every cell of the gallery: against its paper's equations in plain torch, by finite differences, in float32."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from compilers import needs_compiler
from gallery_reference import REFERENCES
from gallery_reference import run as run_reference

#: One for each family: kernels take seconds to compile for every further format, and benchmarks/cells.py checks all.
IN_FLOAT32 = ("elman_identity", "one_state", "nas", "peephole_lstm", "rate_relu", "slstm", "slstm_sigmoid")


def _problem(cell, steps, batch, inputs, hidden, dtype=torch.float64):
    """A network, its input, initial states and gradients of all results."""
    generator = torch.Generator().manual_seed(7)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    network = cell(inputs, hidden, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            spread = 0.8 / hidden**0.5 if parameter.dim() == 2 else 0.3  # not chaotic
            parameter.copy_(draw(*parameter.shape) * spread)
            if name.startswith("alpha"):  # a share
                parameter.abs_().add_(0.1)
    states = [draw(1, batch, hidden) for _ in cell.states]
    if "n" in cell.states:  # a normaliser is a sum of positive gates
        states[cell.states.index("n")].abs_().add_(0.5)
    values = [draw(steps, batch, inputs), *states]
    gradients = [draw(steps, batch, hidden), *(draw(1, batch, hidden) for _ in cell.states)]
    leaves = [v.to(torch.float32).to(dtype).requires_grad_() for v in values]
    network.load_state_dict({k: v.to(torch.float32) for k, v in network.state_dict().items()})
    network.eval()  # a cell with masks has their means then
    return network.to(dtype), leaves, [g.to(torch.float32).to(dtype) for g in gradients]


def _flat(found):
    y, states = found
    return (y, *states) if isinstance(states, tuple) else (y, states)


def _by_steps(network, x, states):
    return _flat(network(x, tuple(states) if len(states) > 1 else states[0], backend="reference"))


def _fused(network, x, states):
    return _flat(network(x, tuple(states) if len(states) > 1 else states[0], backend="fused"))


def _plain(network, x, states):
    y, last = run_reference(network.cell.name, network, x, tuple(s[0] for s in states))
    return (y, *(s[None] for s in last))


def _results(run, network, leaves, gradients):
    """Outputs, final states and all gradients by name."""
    found = run(network, leaves[0], leaves[1:])
    states = network.cell.states
    wanted = {"x": leaves[0], **dict(zip((f"{s}0" for s in states), leaves[1:], strict=True))}
    wanted |= dict(network.named_parameters())
    of = torch.autograd.grad(found, list(wanted.values()), gradients, allow_unused=True)
    named = {"y": found[0], **dict(zip((f"{s}n" for s in states), found[1:], strict=True))}
    named |= {
        f"d{name}": torch.zeros_like(wanted[name]) if g is None else g for name, g in zip(wanted, of, strict=True)
    }
    return {name: value.detach() for name, value in named.items()}


def test_every_cell_has_a_reference(CELLS):
    assert set(CELLS) == set(REFERENCES)
    assert {cell.name for cell in CELLS.values()} == set(CELLS)


@needs_compiler
@pytest.mark.parametrize("name", REFERENCES)
def test_computes_what_the_paper_says(CELLS, name):
    problem = _problem(CELLS[name], steps=9, batch=3, inputs=5, hidden=19)
    ours, theirs = _results(_fused, *problem), _results(_plain, *problem)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-11, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


@needs_compiler
@pytest.mark.parametrize("name", REFERENCES)
def test_gradient_is_that_of_finite_differences(CELLS, name):
    network, leaves, _ = _problem(CELLS[name], steps=3, batch=2, inputs=2, hidden=3)
    names = [key for key, _ in network.named_parameters()]

    def run(*values):
        weights = dict(zip(names, values[len(leaves) :], strict=True))
        x, *states = values[: len(leaves)]
        hx = tuple(states) if len(states) > 1 else states[0]
        return _flat(torch.func.functional_call(network, weights, (x, hx), {"backend": "fused"}))

    parameters = [p.detach().requires_grad_() for p in network.parameters()]
    assert torch.autograd.gradcheck(run, (*leaves, *parameters), fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("name", IN_FLOAT32)
def test_float32_is_as_exact_as_torch(CELLS, name):
    exact = _results(_plain, *_problem(CELLS[name], 12, 4, 6, 33))
    small = _problem(CELLS[name], 12, 4, 6, 33, dtype=torch.float32)
    # Torch's own, with all gates in one product as torch.nn has them: sums over one gate at a time are shorter.
    ours, theirs = _results(_fused, *small), _results(_by_steps, *small)
    for key, value in exact.items():
        scale = value.square().mean().sqrt() + 1e-30
        error, allowed = ((found[key] - value).square().mean().sqrt() / scale for found in (ours, theirs))
        assert error <= 2 * max(allowed, 4 * 2.0**-23), f"{key}: {error:.2g}, torch {allowed:.2g}"


@needs_compiler
def test_without_peepholes_is_the_lstm(CELLS):
    ours, lstm = CELLS["lstm_no_peepholes"](4, 8, dtype=torch.float64), torch.nn.LSTM(4, 8, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            z, i, f, o = getattr(ours, name).chunk(4)
            parameter.copy_(torch.cat([i, f, z, o]))
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(_flat(ours(x)), _flat(lstm(x)))


@needs_compiler
@pytest.mark.parametrize("name", ["slstm", "slstm_sigmoid"])
def test_normaliser_of_zero_is_a_beginning(CELLS, name):
    """The treatment of a zero normaliser, which keeps large gates finite, does not change other sequences."""
    network, (x, *_), (dy, *_) = _problem(CELLS[name], steps=5, batch=3, inputs=4, hidden=6)
    zeros = tuple(torch.zeros(3, 6, dtype=torch.float64) for _ in range(4))
    found = [network(x, backend="fused")[0], run_reference(name, network, x, zeros)[0]]
    wanted = [x, *network.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y, wanted, dy) for y in found))
    torch.testing.assert_close(*found)


@needs_compiler
def test_stabiliser_keeps_large_gates_finite(CELLS):
    network = CELLS["slstm"](2, 5, dtype=torch.float64)
    x = torch.randn(40, 3, 2, dtype=torch.float64).requires_grad_()
    y, _ = network(3000 * x)
    y.sum().backward()
    assert y.isfinite().all()
    assert y.abs().max() <= 1
    assert x.grad.isfinite().all()


def test_parameters_begin_as_the_cell_says(CELLS):
    assert (CELLS["rate_tanh"](2, 4).alpha_l0 == 0.2).all()
    peephole = CELLS["peephole_lstm"](2, 4000).pf_l0
    assert abs(peephole.std() - 0.1) < 0.01


def test_is_found_by_name_and_pickled(CELLS):
    from fastrnn import gallery

    assert gallery.nas is CELLS["nas"]
    assert pickle.loads(pickle.dumps(gallery.slstm)) is gallery.slstm
    assert "slstm" in dir(gallery)
    with pytest.raises(AttributeError, match="its cells: nas"):
        _ = gallery.transformer


def test_docstrings_have_equations(CELLS):
    for name, cell in CELLS.items():
        doc = cell.__doc__
        for state in cell.states:
            assert f"{state}' = " in doc, f"{name} does not say what {state} becomes"
        assert "nitialisation" in doc, name


def test_is_not_loaded_with_the_library():
    program = "import sys, fastrnn; sys.exit('fastrnn.gallery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@needs_compiler
def test_noise_of_the_rate_network(CELLS):
    network = CELLS["rate_noisy"](3, 8, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.manual_seed(1)
    y, _ = network(x)
    torch.manual_seed(1)
    noise = torch.randn(5, 2, 8, dtype=torch.float64)
    h = v = torch.zeros(2, 8, dtype=torch.float64)
    alpha, sigma = network.alpha_l0, network.sigma_l0
    for t in range(5):
        net = x[t] @ network.weight_ih_l0.T + network.bias_ih_l0 + h @ network.weight_hh_l0.T + network.bias_hh_l0
        v = (1 - alpha) * v + alpha * net + (2 * alpha).sqrt() * sigma * noise[t]
        h = v.relu()
        torch.testing.assert_close(y[t], h)
    assert not torch.equal(network(x)[0], y)
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])


def test_masks_of_the_regularised():
    from fastrnn.gallery.regularised import keep_mask

    like = torch.empty(200, 500)
    drawn = keep_mask(0.25, True)(like, True)
    assert drawn.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(drawn.mean() - 1) < 0.01
    assert (keep_mask(0.25, True)(like, False) == 1).all()
    assert set(keep_mask(0.05, False)(like, True).unique().tolist()) == {0.0, 1.0}
    assert (keep_mask(0.05, False)(like, False) == 0.95).all()
