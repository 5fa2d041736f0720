"""Gradient flow, Jacobians and spectra: against autograd, against theory, and the lectures' figures."""

from __future__ import annotations

import math

import pytest
import torch

import fastrnn
from fastrnn import inspect
from fastrnn.inspect import flow

T, B, I, H = 8, 3, 4, 7  # noqa: E741 - letters as in the equations


def _double(*size):
    return torch.randn(*size, dtype=torch.float64)


@pytest.mark.parametrize(("eigenvalue", "gain"), [(1.1, 13780), (0.9, 2.65e-5)])
def test_gain_of_a_linear_recurrence_over_100_steps(eigenvalue, gain):
    from fastrnn.gallery import elman_identity

    network = elman_identity(I, H, dtype=torch.float64)
    with torch.no_grad():
        network.weight_hh_l0.copy_(eigenvalue * torch.eye(H, dtype=torch.float64))
    norms = inspect.gradient_flow(network, _double(100, B, I)).layers[0].norms()
    assert len(norms) == 101
    assert float(norms[100] / norms[0]) == pytest.approx(eigenvalue**100, rel=1e-12)
    assert float(norms[100] / norms[0]) == pytest.approx(gain, rel=3e-3)  # the lectures' digits
    assert inspect.spectrum(network)[0].radius == pytest.approx(eigenvalue)


@pytest.mark.parametrize("library", [torch.nn, fastrnn], ids=["torch", "fastrnn"])
def test_an_lstm_with_forget_gate_095_scales_the_gradient_of_c_by_its_power(library):
    module = library.LSTM(I, H, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[H : 2 * H] = math.log(0.95 / 0.05)  # σ of it is 0.95
    norms = inspect.gradient_flow(module, _double(8, B, I)).layers[0].norms("c")
    assert float(norms[8] / norms[0]) == pytest.approx(0.95**8, rel=1e-12)
    torch.testing.assert_close(inspect.follow(module, _double(2, B, I))[0].gates["f"].mean().item(), 0.95)


def _loss(y):
    return (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).square().sum() + y[-1].sum()


def test_lstm_against_autograd():
    """A loop of torch's own cells, in which every state is a point to differentiate at."""
    module, x = fastrnn.LSTM(I, H, dtype=torch.float64), _double(T, B, I)
    cell = torch.nn.LSTMCell(I, H, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    start = tuple(_double(B, H).requires_grad_() for _ in range(2))
    states = [start]
    for t in range(T):
        states.append(cell(x[t], states[-1]))
    points = [state for pair in states for state in pair]
    expected = torch.autograd.grad(_loss(torch.stack([h for h, _ in states[1:]])), points)
    found = inspect.gradient_flow(module, x, tuple(s.unsqueeze(0) for s in start), loss=_loss).layers[0].gradients
    torch.testing.assert_close(found["h"], torch.stack(expected[0::2]))
    torch.testing.assert_close(found["c"], torch.stack(expected[1::2]))
    assert all(parameter.grad is None for parameter in module.parameters())


CASES = {
    "lstm": lambda: fastrnn.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64),
    "projection": lambda: torch.nn.LSTM(I, H, 2, proj_size=3, dtype=torch.float64),
    "gru": lambda: torch.nn.GRU(I, H, 2, bidirectional=True, dtype=torch.float64),
    "rnn": lambda: fastrnn.RNN(I, H, 2, bias=False, dtype=torch.float64),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", [None, _loss], ids=["last", "all"])
def test_kernels_and_the_loop_agree(case, loss, monkeypatch):
    module, x = CASES[case](), _double(T, B, I)
    by_kernels = inspect.gradient_flow(module, x, loss=loss)
    monkeypatch.setattr(flow, "_by_kernels", lambda layer: False)
    by_loop = inspect.gradient_flow(module, x, loss=loss)
    assert by_kernels.loss == pytest.approx(by_loop.loss)
    for one, other in zip(by_kernels.layers, by_loop.layers, strict=True):
        assert one.name == other.name
        for state, gradient in one.gradients.items():
            assert gradient.shape[:2] == (T + 1, B)
            torch.testing.assert_close(gradient, other.gradients[state])


def test_initial_states_get_autograds_gradients():
    """Both ends of a sequence, of a module that is used as it is."""
    module, x = fastrnn.LSTM(I, H, 2, dtype=torch.float64), _double(T, B, I)
    hx = tuple(_double(2, B, H).requires_grad_() for _ in range(2))
    expected = torch.autograd.grad(_loss(module(x, hx)[0]), hx)
    found = inspect.gradient_flow(module, x, hx, loss=_loss)
    for k, state in enumerate("hc"):
        first = torch.stack([layer.gradients[state][0] for layer in found.layers])
        torch.testing.assert_close(first, expected[k])


def test_cell_state_of_a_cell_of_ones_own_is_that_of_the_same_lstm():
    """The gradient of c is with the path through h of the same step, for kernels and for the loop alike."""
    from fastrnn.gallery import lstm_no_peepholes

    own, module = lstm_no_peepholes(I, H, dtype=torch.float64), fastrnn.LSTM(I, H, dtype=torch.float64)
    order = [1, 2, 0, 3]  # z i f o as i f g(=z) o
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            blocks = getattr(own, name).chunk(4)
            getattr(module, name).copy_(torch.cat([blocks[k] for k in order]))
    x = _double(T, B, I)
    expected = inspect.gradient_flow(module, x, loss=_loss).layers[0].gradients
    found = inspect.gradient_flow(own, x, loss=_loss).layers[0].gradients
    for state in "hc":
        torch.testing.assert_close(found[state], expected[state])


def test_cells_and_single_rows():
    cell, x = torch.nn.GRUCell(I, H, dtype=torch.float64), _double(T, I)
    module = torch.nn.GRU(I, H, dtype=torch.float64)
    module.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    one, other = (inspect.gradient_flow(m, x).layers[0].gradients["h"] for m in (cell, module))
    torch.testing.assert_close(one, other)


def test_norms_name_a_state_that_is_not_there():
    layer = inspect.gradient_flow(fastrnn.GRU(I, H), torch.randn(T, I)).layers[0]
    with pytest.raises(ValueError, match="state: expected one of h, got 'c'"):
        layer.norms("c")


def test_a_loss_that_is_none():
    with pytest.raises(ValueError, match="loss: expected a function of the outputs"):
        inspect.gradient_flow(fastrnn.GRU(I, H), torch.randn(T, I), loss=lambda y: y)
    with pytest.raises(ValueError, match="loss: expected a function of the outputs"):
        inspect.gradient_flow(fastrnn.GRU(I, H), torch.randn(T, I), loss=lambda y: torch.zeros(()))


@pytest.mark.parametrize("make", [fastrnn.LSTM, torch.nn.GRU, fastrnn.RNN, torch.nn.LSTMCell])
def test_jacobian_against_autograd(make):
    module = make(I, H).double()
    x, states = _double(B, I), tuple(_double(B, H) for _ in range(2 if "LSTM" in make.__name__ else 1))
    given = states if len(states) > 1 else states[0]
    found = inspect.jacobian(module, x, given)
    for row in range(B):

        def step(*old, row=row):
            if isinstance(module, torch.nn.RNNCellBase):
                return torch.cat(module(x[row], tuple(old)))
            hx = tuple(s.unsqueeze(0) for s in old)
            last = module(x[row : row + 1], hx if len(hx) > 1 else hx[0])[1]
            return torch.cat([s[0] for s in (last if isinstance(last, tuple) else (last,))])

        expected = torch.autograd.functional.jacobian(step, tuple(s[row] for s in states))
        torch.testing.assert_close(found[row], torch.cat(expected, -1))
    alone = inspect.jacobian(module, x[0], tuple(s[0] for s in states))
    torch.testing.assert_close(alone, found[0])


def test_jacobian_of_every_cell_of_the_gallery():
    """By finite differences of the network's own step, central ones: their error is about 1e-10."""
    from fastrnn import gallery

    for name, cell in gallery.CELLS.items():
        network = cell(I, H, dtype=torch.float64).eval()
        for key, parameter in network.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3)
            if key.startswith("alpha"):  # a share
                parameter.data.abs_().add_(0.1)
        x, states = _double(1, I), [_double(1, H).abs() + 0.5 for _ in cell.states]
        given = tuple(states) if len(states) > 1 else states[0]
        found = inspect.jacobian(network, x, given)[0]
        columns, size = [], 1e-5
        for k in range(len(states) * H):
            ends = []
            for sign in (1, -1):
                moved = [state.clone() for state in states]
                moved[k // H][0, k % H] += sign * size
                hx = [m.unsqueeze(0) for m in moved]
                last = network(x.unsqueeze(0), tuple(hx) if len(hx) > 1 else hx[0], backend="reference")[1]
                ends.append(torch.cat(last if isinstance(last, tuple) else (last,), -1).flatten())
            columns.append((ends[0] - ends[1]) / (2 * size))
        expected = torch.stack(columns, 1).detach()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_jacobian_of_a_layer_and_direction():
    module = fastrnn.GRU(I, H, 2, bidirectional=True, dtype=torch.float64)
    single = fastrnn.GRU(2 * H, H, dtype=torch.float64)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(single, name + "_l0", getattr(module, name + "_l1_reverse"))
    x, h = _double(B, 2 * H), _double(B, H)
    torch.testing.assert_close(inspect.jacobian(module, x, h, layer=3), inspect.jacobian(single, x, h))
    with pytest.raises(ValueError, match="layer: expected one of 0 to 3, got 4"):
        inspect.jacobian(module, x, h, layer=4)
    with pytest.raises(ValueError, match=r"x: expected \(B, 4\) or \(4\), got \(3, 14\)"):
        inspect.jacobian(module, x, h)
    with pytest.raises(ValueError, match=r"h: expected states of shapes \[\(3, 7\)\], got \[\(3, 6\)\]"):
        inspect.jacobian(module, x, h[:, :6], layer=3)


def test_product_of_jacobians_is_the_gradient_flow():
    """Theory: ∂h_T/∂h_0 is the product of the steps' Jacobians."""
    module, x = fastrnn.RNN(I, H, dtype=torch.float64), _double(T, 1, I)
    states = inspect.follow(module, x)[0].states["h"]
    before = torch.cat([torch.zeros(1, 1, H, dtype=torch.float64), states[:-1]])
    product = torch.eye(H, dtype=torch.float64)
    for t in range(T):
        product = inspect.jacobian(module, x[t, 0], before[t, 0]) @ product
    found = inspect.gradient_flow(module, x).layers[0].gradients["h"][0, 0]
    torch.testing.assert_close(found, product.sum(0))


def test_spectrum_has_every_block():
    module = torch.nn.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64)
    found = inspect.spectrum(module)
    assert [(s.layer, s.gate) for s in found[:5]] == [
        *(("layer 1", gate) for gate in "ifgo"),
        ("layer 1, reverse", "i"),
    ]
    assert len(found) == 16
    block = module.weight_hh_l1_reverse[H : 2 * H].detach()
    one = found[13]
    assert (one.layer, one.gate) == ("layer 2, reverse", "f")
    torch.testing.assert_close(one.singular_values.prod(), block.det().abs())
    torch.testing.assert_close(one.eigenvalues.sum().real, block.trace())
    assert one.radius == float(one.eigenvalues.abs().max())


def test_spectrum_of_a_projection():
    module = torch.nn.LSTM(I, H, proj_size=2, dtype=torch.float64)
    found = inspect.spectrum(module)[0].eigenvalues.abs()
    assert found.shape == (H,)
    torch.testing.assert_close(found[2:], torch.zeros(H - 2, dtype=torch.float64))  # of rank 2
    assert found[1] > 0
