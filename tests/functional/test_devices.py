"""Tensors on two devices in one call: every mixture raises RuntimeError, as in torch, and none computes in silence."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from raw_calls import LAYOUTS, OPERATORS, ORDER, invoke, moved, valid
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import cells as known
from fastrnn.functional import LayerWeights, gru, hidden_gradients, sequence

T, B, D, H = 4, 5, 3, 2
GPU = [pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
OTHER = ["meta", *GPU]


def layer(cell: str = "lstm"):
    G = known.CELLS[cell].gates
    weights = LayerWeights(torch.randn(G * H, D), torch.randn(G * H, H), torch.randn(G * H), torch.randn(G * H))
    return torch.randn(T, B, D), weights, tuple(torch.randn(B, H) for _ in known.CELLS[cell].states)


def one_of(*groups: tuple[torch.Tensor, ...], other: str):
    """The groups with each tensor in turn on the other device, and with all but that one there."""
    flat = list(itertools.chain(*groups))
    for k, outside in itertools.product(range(len(flat)), (False, True)):
        moved = iter([t.to(other) if (j == k) != outside else t for j, t in enumerate(flat)])
        yield [tuple(next(moved) for _ in group) for group in groups]


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
@pytest.mark.parametrize("cell", known.CELLS)
def test_functional(cell, backend, other):
    x, weights, states = layer(cell)
    for (x_,), weights_, states_ in one_of((x,), weights[:4], states, other=other):
        with pytest.raises(RuntimeError):
            pytest.fail(str(sequence(cell, x_, LayerWeights(*weights_), states_, backend=backend)))
        with pytest.raises(RuntimeError):
            hidden_gradients(cell, x_, LayerWeights(*weights_), states_, None)


@pytest.mark.parametrize("other", OTHER)
def test_functional_with_gradients_and_projection(other):
    x, weights, (h, c) = layer()
    weights = LayerWeights(weights.w_ih, torch.randn(4 * H, 1), None, None, torch.randn(1, H))
    given = (weights.w_ih, weights.w_hh, weights.w_hr)
    for (x_,), (w_ih, w_hh, w_hr), states in one_of((x,), given, (h[:, :1], c), other=other):
        leaves = [t.detach().requires_grad_() for t in (x_, w_ih, w_hh, w_hr)]
        with pytest.raises(RuntimeError):
            sequence("lstm", leaves[0], LayerWeights(*leaves[1:3], None, None, leaves[3]), states)
        with pytest.raises(RuntimeError):
            sequence("lstm", leaves[0], LayerWeights(*leaves[1:3], None, None, leaves[3]), states, recompute=2)


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name, other):
    for layout in LAYOUTS:
        call = valid(name, "lstm", random.Random(3), layout)
        for key, value in call.items():
            if key in ("batch_sizes", "lengths", "reset") or not isinstance(value, (torch.Tensor, list)):
                continue
            if key in ("y", "reserve", "grad_y", "grad_final", "needs") and name == "sequence_forward":
                continue
            if isinstance(value, list) and not any(isinstance(t, torch.Tensor) and t.numel() for t in value):
                continue
            if key not in ORDER[name]:
                continue
            for changed in (
                moved(call, lambda t: t.to(other), tuple(k for k in call if k != key)),
                moved(call, lambda t: t.to(other), (key, "batch_sizes")),
            ):
                with pytest.raises(RuntimeError):
                    pytest.fail(f"{layout} {key}: {invoke(name, changed)}")


@pytest.mark.parametrize("key", ["lengths", "reset", "batch_sizes"])
@pytest.mark.parametrize("name", OPERATORS)
def test_values_on_meta(name, key):
    """Tensors that decide the row layout must have values."""
    call = valid(name, "lstm", random.Random(0), {"batch_sizes": "packed"}.get(key, key))
    with pytest.raises((RuntimeError, ValueError), match=key):
        invoke(name, moved(call, lambda t: t.to("meta"), tuple(k for k in call if k != key)))
    x, weights, _ = layer()
    value = {"lengths": torch.ones(B).long(), "reset": torch.zeros(T, B).bool(), "batch_sizes": torch.tensor([3, 2])}
    x = x[0] if key == "batch_sizes" else x
    for backend in ("auto", "reference"):
        with pytest.raises((RuntimeError, ValueError)):
            sequence("lstm", x, weights, **{key: value[key].to("meta")}, backend=backend)


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("vocabulary", [4, 400], ids=["table", "rows"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_embedding_of_the_functional_form(vocabulary, backend, other):
    _, weights, _ = layer("gru")
    ids, table = torch.randint(0, 4, (T, B)), torch.randn(vocabulary, D)
    for (ids_, table_), weights_ in one_of((ids, table), weights[:4], other=other):
        with pytest.raises(RuntimeError):
            pytest.fail(str(gru(ids_, LayerWeights(*weights_), embedding=table_, backend=backend)))


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("vocabulary", [4, 400], ids=["table", "rows"])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN, fastrnn.LSTMCell, fastrnn.GRUCell])
def test_embedding_of_the_modules(kind, vocabulary, other):
    single = issubclass(kind, nn.RNNCellBase)
    ids = torch.randint(0, 4, (B,) if single else (T, B))
    for where in itertools.product(("cpu", other), repeat=3):
        if len(set(where)) == 1:
            continue
        module, embedding = kind(D, H).to(where[0]), nn.Embedding(vocabulary, D).to(where[2])
        inputs = [ids.to(where[1])]
        if not single:
            inputs.append(pack_sequence([ids[:, 0], ids[:2, 1]]).to(where[1]))
        for given in inputs:
            for table in (embedding, embedding.weight):
                with pytest.raises(RuntimeError):
                    pytest.fail(f"{where}: {module(given, embedding=table)}")


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN, fastrnn.LSTMCell, fastrnn.GRUCell])
def test_modules(kind, other):
    x = torch.randn(B, D) if issubclass(kind, nn.RNNCellBase) else torch.randn(T, B, D)
    for module, given in ((kind(D, H), x.to(other)), (kind(D, H).to(other), x)):
        with pytest.raises(RuntimeError):
            module(given)
    mixed = kind(D, H)
    name = next(n for n, _ in mixed.named_parameters() if n.startswith("bias_hh"))
    setattr(mixed, name, nn.Parameter(getattr(mixed, name).detach().to(other)))
    with pytest.raises(RuntimeError):
        mixed(x)


@fastrnn.cell(gates="z n", inputs={"noise": lambda like, training: torch.zeros_like(like)})
def with_input(x, r, s):
    z = torch.sigmoid(x.z + r.z)
    return z * s.h + (1 - z) * torch.tanh(x.n + r.n) + x.noise


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", ["gru", "mixed", "with_input"])
def test_networks(cells, name, heads, other):
    cell = with_input if name == "with_input" else getattr(cells, name)
    x = torch.randn(T, B, D)
    for backend in ("auto", "reference"):
        for where in itertools.product(("cpu", other), repeat=2):
            network = cell(D, H, heads=heads).to(where[0])
            if len(set(where)) == 2:
                with pytest.raises(RuntimeError):
                    pytest.fail(str(network(x.to(where[1]), backend=backend)))
        names = [n for n, _ in cell(D, H, heads=heads).named_parameters()]
        for parameter in names:
            network = cell(D, H, heads=heads)
            setattr(network, parameter, nn.Parameter(getattr(network, parameter).detach().to(other)))
            with pytest.raises(RuntimeError):
                pytest.fail(f"{parameter}: {network(x, backend=backend)}")
        count = len(cell.states)
        hx = [torch.zeros(1, B, H) for _ in range(count)]
        hx[-1] = hx[-1].to(other)
        with pytest.raises(RuntimeError):
            cell(D, H, heads=heads)(x, tuple(hx) if count > 1 else hx[0], backend=backend)


def test_all_on_meta_is_no_mixture(cells):
    x = torch.randn(T, B, D, device="meta")
    for module in (fastrnn.LSTM(D, H, device="meta"), cells.gru(D, H, device="meta")):
        y, _ = module(x)
        assert y.is_meta
        assert y.shape == (T, B, H)
    module = fastrnn.GRU(D, H, device="meta")
    y, _ = module(torch.zeros(T, B, dtype=torch.long, device="meta"), embedding=torch.randn(3, D, device="meta"))
    assert y.is_meta
    y, _ = fastrnn.LSTM(D, H, device="meta")(x, lengths=torch.full((B,), 2))
    assert y.is_meta
    packed = torch.randn(7, D, device="meta")
    _, weights, _ = layer()
    weights = LayerWeights(*(None if w is None else w.to("meta") for w in weights))
    y, (h, _) = sequence("lstm", packed, weights, batch_sizes=torch.tensor([4, 2, 1]))
    assert y.shape == (7, H)
    assert h.shape == (4, H)
