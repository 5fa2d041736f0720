"""States and gates of whole sequences, against loops that go step by step."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

import fastrnn
from fastrnn import inspect
from fastrnn.inspect.layers import layers_of
from fastrnn.inspect.states import stepwise

T, B, I, H = 7, 3, 5, 9  # noqa: E741 - letters as in the equations
CASES = {
    "lstm": lambda n: n.LSTM(I, H, dtype=torch.float64),
    "lstm, two layers and directions": lambda n: n.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64),
    "lstm with projection": lambda n: n.LSTM(I, H, proj_size=4, dtype=torch.float64),
    "gru without bias": lambda n: n.GRU(I, H, 2, bias=False, dtype=torch.float64),
    "rnn": lambda n: n.RNN(I, H, nonlinearity="relu", dtype=torch.float64),
}


@pytest.mark.parametrize("library", [torch.nn, fastrnn], ids=["torch", "fastrnn"])
@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_the_module(case, library):
    module = CASES[case](library)
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, last = module(x)
    last = last if isinstance(last, tuple) else (last,)
    found = inspect.follow(module, x)
    for number, layer in enumerate(found):
        end = 0 if "reverse" in layer.name else -1
        for state, expected in zip(layer.states.values(), last, strict=True):
            assert state.shape == (T, B, expected.shape[-1])
            torch.testing.assert_close(state[end], expected[number])
    top = [layer.states["h"] for layer in found[-2:]] if "directions" in case else [found[-1].states["h"]]
    torch.testing.assert_close(torch.cat(top, -1), y)


@pytest.mark.parametrize("case", CASES)
def test_every_state_is_that_of_single_steps(case):
    module = CASES[case](fastrnn)
    x = torch.randn(T, B, I, dtype=torch.float64)
    found, inputs = inspect.follow(module, x), x
    for number, layer in enumerate(layers_of(module)):
        if layer.index == 1 and not layer.reverse:
            inputs = torch.cat([f.states["h"] for f in found[:number]], -1)
        initial = layer.initial(x, B)
        expected = stepwise(layer, layer.columns(inputs), initial)
        for state, wanted in zip(found[number].states.values(), expected, strict=True):
            torch.testing.assert_close(state, wanted)


def test_gates_of_an_lstm_are_its_equations():
    module = fastrnn.LSTM(I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    h, c = (torch.randn(1, B, H, dtype=torch.float64) for _ in range(2))
    (found,) = inspect.follow(module, x, (h, c))
    h, c = h[0], c[0]
    for t in range(T):
        a = x[t] @ module.weight_ih_l0.T + module.bias_ih_l0 + h @ module.weight_hh_l0.T + module.bias_hh_l0
        i, f, g, o = a.chunk(4, -1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        c = f * c + i * g.tanh()
        h = o * c.tanh()
        for name, value in {"i": i, "f": f, "o": o}.items():
            torch.testing.assert_close(found.gates[name][t], value)
        torch.testing.assert_close(found.states["c"][t], c)
    assert set(found.gates) == {"i", "f", "o"}


def test_gates_of_a_gru_are_its_equations():
    module = torch.nn.GRU(I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    (found,) = inspect.follow(module, x)
    h = torch.zeros(B, H, dtype=torch.float64)
    for t in range(T):
        a = x[t] @ module.weight_ih_l0.T + module.bias_ih_l0
        b = h @ module.weight_hh_l0.T + module.bias_hh_l0
        r, z = (a[:, : 2 * H] + b[:, : 2 * H]).sigmoid().chunk(2, -1)
        h = (1 - z) * torch.tanh(a[:, 2 * H :] + r * b[:, 2 * H :]) + z * h
        torch.testing.assert_close(found.gates["r"][t], r)
        torch.testing.assert_close(found.gates["z"][t], z)


class _Sigmoids(TorchFunctionMode):
    """Writes down what every logistic function gave."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.sigmoid:
            self.found.append(result)
        return result


@pytest.mark.parametrize(
    "cell", ["peephole_lstm", "min_lstm", "gru_reset_before", "layer_norm_gru", "multiplicative_lstm"]
)
def test_gates_of_the_gallery_are_what_their_step_computes(cell):
    from fastrnn import gallery

    network = gallery.CELLS[cell](I, H, dtype=torch.float64)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(T, B, I, dtype=torch.float64)
    (found,) = inspect.follow(network, x)
    (layer,) = layers_of(network)
    with _Sigmoids() as mode, torch.no_grad():
        expected = stepwise(layer, layer.columns(x), layer.initial(x, B))
    count = len(mode.found) // T
    assert count == len(found.gates)
    for k, state in enumerate(found.states.values()):
        torch.testing.assert_close(state, expected[k])
    for t in range(T):  # the same values, whichever order the step has them in
        wanted = torch.stack(mode.found[t * count : (t + 1) * count]).flatten(1)
        got = torch.stack([gate[t] for gate in found.gates.values()]).flatten(1)
        torch.testing.assert_close(got[got[:, 0].argsort()], wanted[wanted[:, 0].argsort()])


def test_names_of_gates():
    from fastrnn import gallery

    names = {"peephole_lstm": "ifo", "multiplicative_lstm": "ifo", "gru_reset_before": "rz", "sru": "fr"}
    for cell, expected in names.items():
        (found,) = inspect.follow(gallery.CELLS[cell](I, H, dtype=torch.float64), torch.randn(2, 1, I).double())
        assert sorted(found.gates) == sorted(expected), cell


def test_layouts_agree():
    module = fastrnn.GRU(I, H, batch_first=True)
    x = torch.randn(B, T, I)
    torch.testing.assert_close(inspect.follow(module, x)[0].states["h"].transpose(0, 1), module(x)[0])
    alone = inspect.follow(module, x[0])[0].states["h"]
    torch.testing.assert_close(alone, inspect.follow(module, x)[0].states["h"][:, :1])
    with_state = inspect.follow(module, x[0], torch.ones(1, H))[0].states["h"]
    torch.testing.assert_close(with_state[:, 0], module(x[0], torch.ones(1, H))[0])


@pytest.mark.parametrize(
    ("module", "x", "error", "message"),
    [
        (torch.nn.Linear(2, 2), torch.randn(2, 2), TypeError, "module: expected an LSTM, GRU or RNN"),
        (fastrnn.GRU(2, 2), [1.0], TypeError, "x: expected a Tensor, got list"),
        (fastrnn.GRU(2, 2), torch.randn(2), ValueError, r"x: expected \(T, B, I\), or \(T, I\)"),
        (fastrnn.GRU(2, 2), torch.randn(0, 2, 2), ValueError, "with at least one time step"),
    ],
)
def test_wrong_arguments(module, x, error, message):
    with pytest.raises(error, match=message):
        inspect.follow(module, x)


def test_wrong_states():
    with pytest.raises(
        ValueError, match=r"hx: expected states of shapes \[\(1, 3, 9\), \(1, 3, 9\)\], got \[\(1, 3, 9\)\]"
    ):
        inspect.follow(fastrnn.LSTM(I, H), torch.randn(T, B, I), torch.zeros(1, B, H))
    with pytest.raises(ValueError, match="expected a network with one head, got 3"):
        inspect.follow(_headed(), torch.randn(T, B, I))


def _headed():
    from fastrnn import gallery

    return gallery.CELLS["slstm"](I, H, heads=3)
