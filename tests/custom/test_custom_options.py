"""Options that networks of custom cells have as LSTM, GRU and RNN do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

V, I, H, T, B = 9, 3, 5, 7, 4  # noqa: E741


@fastrnn.cell(gates="f u")
def one_state(x, r, s):
    f = torch.sigmoid(x.f + r.f)
    return f * s.h + torch.tanh(x.u + r.u)


def gradients(y, *leaves):
    return torch.autograd.grad(y.square().sum(), leaves)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("matrix", [False, True])
def test_embedding(batch_first, matrix):
    network, table = one_state(I, H, 2, batch_first=batch_first), nn.Embedding(V, I)
    ids = torch.randint(V, (B, T) if batch_first else (T, B))
    ids_with_padding = ids.clone()
    lengths = [7, 3, 0, 5]
    if batch_first:
        ids_with_padding[1, 3:] = -5
    else:
        ids_with_padding[3:, 1] = -5
    given = table.weight if matrix else table
    for keywords, found in (({}, ids), ({"lengths": lengths}, ids_with_padding)):
        y, h = network(found, embedding=given, **keywords)
        right, last = network(table(ids), **keywords)
        assert torch.equal(y, right)
        assert torch.equal(h, last)
        for a, b in zip(
            gradients(y, *network.parameters(), table.weight),
            gradients(right, *network.parameters(), table.weight),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_embedding_of_packed_ids_and_of_a_step():
    network, table = one_state(I, H), nn.Embedding(V, I)
    packed = pack_sequence([torch.randint(V, (n,)) for n in (5, 3, 3)])
    y, _ = network(packed, embedding=table)
    right, _ = network(packed._replace(data=table(packed.data)))
    assert isinstance(y, PackedSequence)
    assert torch.equal(y.data, right.data)
    ids = torch.tensor([1, 8])
    assert torch.equal(network.step(ids, embedding=table)[0], network.step(table(ids))[0])
    with pytest.raises(IndexError, match="expected ids from 0 to 8"):
        network(torch.tensor([[9]]), embedding=table)
    with pytest.raises(TypeError, match="embedding: expected"):
        network(torch.tensor([[1]]), embedding="table")


@pytest.mark.parametrize("make", [one_state, fastrnn.LSTM, fastrnn.GRU])
def test_many_packed_ids_are_looked_up_in_a_table_of_products(make, monkeypatch):
    network, table = make(I, H), nn.Embedding(V, I)
    packed = pack_sequence([torch.randint(V, (n,)) for n in (15, 13, 13)])
    embedded = packed._replace(data=table(packed.data))
    tables = []
    whole = fastrnn._tokens.embed
    monkeypatch.setattr(fastrnn._tokens, "embed", lambda *args: tables.append(args[1]) or whole(*args))
    y, _ = network(packed, embedding=table)
    assert len(tables) == 1
    right, _ = network(embedded)
    leaves = [*network.parameters(), table.weight]
    for a, b in zip(gradients(y.data, *leaves), gradients(right.data, *leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_attributes_stand_in_for_keywords():
    network, x = one_state(I, H), torch.randn(T, B, I)
    network.backend = "reference"
    assert [d.path for d in fastrnn.explain(network, x).decisions] == ["reference"]
    assert [d.path for d in fastrnn.explain(network, x, backend="auto").decisions] == ["eager"]
    with pytest.raises(ValueError, match="backend: expected one of"):
        network(x, backend="quick")
    with pytest.raises(ValueError, match="backend: expected one of"):
        network.step(x[0], backend="quick")
    network.backend, network.recompute = "auto", 3
    assert [d.path for d in fastrnn.explain(network, x).decisions] == ["recompute"]
    assert [d.path for d in fastrnn.explain(network, x, recompute=False).decisions] == ["eager"]
