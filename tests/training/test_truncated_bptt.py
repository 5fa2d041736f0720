"""truncated_bptt: against plain loops, windows against whole backpropagation, restarts of rows, and misuse."""

from __future__ import annotations

import collections
from itertools import pairwise

import pytest
import torch
from dropin_cases import H, I, same
from initial_states import randomised
from torch import nn

import fastrnn
from fastrnn import gallery
from fastrnn.training import detach, truncated_bptt

T, B = 12, 4
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


class Model(nn.Module):
    """A user's model: two networks, a head, a nested state."""

    def __init__(self, learned: bool = False):
        super().__init__()
        self.below = fastrnn.LSTM(I, H, learn_initial_state=learned)
        self.above = nn.GRU(H, H)
        self.head = nn.Linear(H, 2)

    def forward(self, x, state):
        below, above = (None, None) if state is None else (state["below"], state["above"][0])
        y, below = self.below(x, below)
        y, above = self.above(y, above)
        return self.head(y), {"below": below, "above": [above]}


MODELS = {
    "fastrnn.LSTM": lambda: fastrnn.LSTM(I, H, 2),
    "fastrnn.GRU learned": lambda: randomised(fastrnn.GRU(I, H, learn_initial_state=True)),
    "fastrnn.RNN batch_first": lambda: fastrnn.RNN(I, H, batch_first=True),
    "custom": lambda: gallery.peephole_lstm(I, H),
    "torch.LSTM": lambda: nn.LSTM(I, H),
    "torch.GRU batch_first": lambda: nn.GRU(I, H, batch_first=True),
    "model": Model,
    "model learned": lambda: randomised(Model(learned=True)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().double()


def data(model: nn.Module):
    """x, and a weight of each output in the loss."""
    first = getattr(model, "batch_first", False)
    lead = (B, T) if first else (T, B)
    width = 2 if isinstance(model, Model) else H
    return torch.randn(*lead, I).double(), torch.randn(*lead, width).double(), 1 if first else 0


def leaves(state):
    return fastrnn.training.states.leaves(state)


def gradients_of(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_trains_as_the_plain_loop_does(model):
    x, weight, time = data(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = []
    for plain in (True, False):
        model.load_state_dict(before)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses, state = [], None
        if plain:
            for start in range(0, T, 5):
                piece = x.narrow(time, start, min(5, T - start))
                optimizer.zero_grad()
                output, state = model(piece, state)
                state = detach(state)
                losses.append((output * weight.narrow(time, start, piece.shape[time])).sum())
                losses[-1].backward()
                optimizer.step()
        else:
            run = truncated_bptt(model, x, weight, steps=5)
            assert len(run) == 3
            for chunk in run:
                optimizer.zero_grad()
                losses.append((chunk.output * chunk.target).sum())
                losses[-1].backward()
                optimizer.step()
                state = chunk.state
            assert (chunk.start, chunk.stop) == (10, 12)
            same(leaves(run.state), leaves(state), rtol=0, atol=0)
        found.append((losses, leaves(state), [p.detach().clone() for p in model.parameters()]))
    same(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_with_a_window_over_everything_it_is_whole_backpropagation(model, rate):
    """The gradients of all chunks, with weights that stay, add up to that of the whole sequence."""
    x, weight, _ = data(model)
    reset = torch.rand(weight.shape[:2]) < rate
    given = {"reset": reset} if rate else {}
    model.zero_grad()
    for chunk in truncated_bptt(model, x, weight, steps=3, window=12, **given):
        (chunk.output * chunk.target).sum().backward()
    total = gradients_of(model)
    model.zero_grad()
    (whole,) = truncated_bptt(model, x, weight, steps=T, **given)
    (whole.output * weight).sum().backward()
    same(total, gradients_of(model), rtol=1e-9, atol=1e-10)
    if rate and isinstance(model, (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)):
        same(whole.output, model(x, reset=reset)[0], rtol=1e-12, atol=1e-12)
    elif not rate:
        same(whole.output, model(x, None)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [3, 6, 9])
def test_gradients_reach_back_over_the_window(model, window):
    x, weight, time = data(model)
    model.zero_grad()
    for chunk in truncated_bptt(model, x, weight, steps=3, window=window):
        (chunk.output * chunk.target).sum().backward()
    found = gradients_of(model)
    model.zero_grad()
    for start in range(0, T, 3):
        first = max(0, start + 3 - window)
        state = None
        if first:
            with torch.no_grad():
                _, state = model(x.narrow(time, 0, first), None)
        output, _ = model(x.narrow(time, first, start + 3 - first), state)
        (output.narrow(time, start - first, 3) * weight.narrow(time, start, 3)).sum().backward()
    same(found, gradients_of(model), rtol=1e-9, atol=1e-10)


def test_burn_in(model):
    x, weight, time = data(model)
    with torch.no_grad():
        _, state = model(x.narrow(time, 0, 4), None)
    chunks = list(truncated_bptt(model, x, weight, steps=4, burn_in=4))
    assert [(c.start, c.stop) for c in chunks] == [(4, 8), (8, 12)]
    same(chunks[0].output, model(x.narrow(time, 4, 4), state)[0], rtol=1e-12, atol=1e-12)
    assert all(c.mask.all() and c.mask.shape == c.target.shape[:2] for c in chunks)


def test_rows_restart(model):
    """Every row is what it would be alone: run up to its restart, and then anew."""
    x, weight, time = data(model)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[4, 0] = reset[5, 0] = reset[8, 2] = reset[0, 1] = reset[7, :] = True
    given = reset.T if time else reset
    state = None
    run = truncated_bptt(model, x, weight, steps=5, reset=given)
    outputs = [chunk.output for chunk in run]
    found = torch.cat(outputs, time)
    for row in range(B):
        borders = [0, *(t for t in range(1, T) if reset[t, row]), T]
        for start, stop in pairwise(borders):
            piece = x.narrow(1 - time, row, 1).narrow(time, start, stop - start)
            expected, state = model(piece, None)
            same(found.narrow(1 - time, row, 1).narrow(time, start, stop - start), expected, rtol=1e-9, atol=1e-10)
        for s, whole in zip(leaves(state), leaves(run.state), strict=True):
            same(whole[:, row], s[:, 0], rtol=1e-9, atol=1e-10)


def test_mask_and_mean():
    model = fastrnn.GRU(I, H)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[5, 1] = reset[6, 3] = True
    chunks = list(truncated_bptt(model, torch.randn(T, B, I), torch.ones(T, B), steps=5, burn_in=2, reset=reset))
    mask = torch.cat([c.mask for c in chunks])
    expected = torch.ones(T - 2, B, dtype=torch.bool)
    expected[3:5, 1] = expected[4:6, 3] = False  # steps 5, 6 and 6, 7
    assert torch.equal(mask, expected)
    losses = torch.randn(5, B)
    losses[~chunks[0].mask] = float("nan")
    assert chunks[0].mean(losses) == losses[chunks[0].mask].mean()
    with pytest.raises(ValueError, match=r"losses: expected shape \(5, 4\), got \(4,\)"):
        chunks[0].mean(losses[0])
    empty = chunks[0]._replace(mask=torch.zeros(5, B, dtype=torch.bool))
    assert empty.mean(torch.randn(5, B)) == 0


def test_goes_on_from_an_earlier_run():
    model = fastrnn.LSTM(I, H)
    x = torch.randn(T, B, I)
    outputs, state = [], None
    for piece in x.split(6):
        run = truncated_bptt(model, piece, steps=2, state=state)
        outputs += [chunk.output for chunk in run]
        state = run.state
    same(torch.cat(outputs), model(x)[0], **LOOSE)


def test_wrapped_models_and_nested_inputs():
    model = fastrnn.GRU(I, H)
    compiled = torch.compile(model, backend="aot_eager")
    x, reset = torch.randn(T, B, I), torch.rand(T, B) < 0.2
    for found in (compiled, nn.DataParallel(model)):
        outputs = [c.output for c in truncated_bptt(found, x, steps=4, reset=reset)]
        expected = [c.output for c in truncated_bptt(model, x, steps=4, reset=reset)]
        same(outputs, expected, **LOOSE)

    def step(inputs, state):
        return model(inputs["x"] + inputs["more"][0], state)

    nested = {"x": x, "more": (torch.ones(T, B, I),)}
    outputs = [c.output for c in truncated_bptt(step, nested, (x, x), steps=4, reset=reset)]
    expected = [c.output for c in truncated_bptt(model, x + 1, steps=4, reset=reset)]
    same(outputs, expected, **LOOSE)


def test_detach():
    pair = collections.namedtuple("pair", "h c")
    leaf = torch.randn(2, requires_grad=True)
    state = {"a": pair(leaf * 2, [leaf * 3, None]), "b": (leaf, 5)}
    found = detach(state)
    assert isinstance(found["a"], pair)
    assert isinstance(found["a"].c, list)
    assert found["a"].c[1] is None
    assert found["b"][1] == 5
    assert not found["a"].h.requires_grad
    assert torch.equal(found["a"].c[0], leaf * 3)
    assert state["a"].h.requires_grad


def test_nothing_of_the_graph_is_kept():
    """Tensors of earlier chunks are freed: the state has no history."""
    model = fastrnn.LSTM(I, H)
    run = truncated_bptt(model, torch.randn(T, B, I), steps=2)
    for chunk in run:
        assert chunk.output.requires_grad
        assert not any(s.requires_grad for s in leaves(chunk.state))
    assert not any(s.requires_grad for s in leaves(run.state))


X = torch.zeros(6, 2, I)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps: expected an integer, got float"),
        ({"steps": 2, "window": 3}, ValueError, "window: expected a multiple of steps, 2, got 3"),
        ({"steps": 2, "burn_in": 6}, ValueError, "burn_in: expected less than the inputs' 6 time steps, got 6"),
        ({"steps": 2, "burn_in": -1}, ValueError, "burn_in: expected at least 0, got -1"),
        (
            {"steps": 2, "targets": torch.zeros(5, 2)},
            ValueError,
            r"targets: expected shape \(T, B, …\), .* got \(5, 2\)",
        ),
        ({"steps": 2, "inputs": None}, TypeError, "inputs: expected tensors, got NoneType"),
        ({"steps": 2, "reset": torch.zeros(6, 2)}, TypeError, "reset: expected a bool tensor, got torch.float32"),
        ({"steps": 2, "reset": torch.zeros(2, 6) > 0}, ValueError, r"reset: expected shape \(6, 2\)"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        truncated_bptt(fastrnn.GRU(I, H), **{"inputs": X, **arguments})


def test_a_layout_that_is_not_said():
    class Around(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.rnn = nn.GRU(I, H, **options)

        def forward(self, x, state):
            return self.rnn(x, state)

    assert len(truncated_bptt(Around(), X, steps=2)) == 3
    model = Around(batch_first=True)
    with pytest.raises(ValueError, match="batch_first: expected True or False for a model that has no such attribute"):
        truncated_bptt(model, X, steps=2)
    assert len(truncated_bptt(model, X, steps=1, batch_first=True)) == 2


def test_misuse():
    run = truncated_bptt(fastrnn.GRU(I, H), X, steps=2)
    assert len(list(run)) == 3
    with pytest.raises(RuntimeError, match="expected one iteration, got a second"):
        list(run)
    with pytest.raises(TypeError, match=r"model: expected it to return \(output, state\), got Tensor"):
        next(iter(truncated_bptt(lambda x, state: x, X, steps=2)))
