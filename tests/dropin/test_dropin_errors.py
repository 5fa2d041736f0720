"""Whatever torch.nn refuses, we refuse with the same type of error and the same words; warnings likewise."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from dropin_cases import B, H, I, T, cell_pair, layer_pair, random_hx, same
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

Z = torch.zeros

CONSTRUCTIONS = {
    "nothing": lambda c: c(),
    "one argument": lambda c: c(3),
    "too many": lambda c: c(3, 4, *range(20)),
    "unknown keyword": lambda c: c(3, 4, width=1),
    "zero input": lambda c: c(0, 4),
    "negative input": lambda c: c(-1, 4),
    "zero hidden": lambda c: c(3, 0),
    "negative hidden": lambda c: c(3, -4),
    "float input": lambda c: c(3.0, 4),
    "text hidden": lambda c: c(3, "4"),
    "tensor hidden": lambda c: c(3, torch.tensor(4)),
    "zero layers": lambda c: c(3, 4, 0),
    "negative layers": lambda c: c(3, 4, num_layers=-1),
    "float layers": lambda c: c(3, 4, num_layers=1.5),
    "text bias": lambda c: c(3, 4, bias="yes"),
    "integer bias": lambda c: c(3, 4, bias=1),
    "integer batch_first": lambda c: c(3, 4, batch_first=1),
    "no batch_first": lambda c: c(3, 4, batch_first=None),
    "dropout above one": lambda c: c(3, 4, 2, dropout=1.1),
    "dropout below zero": lambda c: c(3, 4, 2, dropout=-0.1),
    "dropout bool": lambda c: c(3, 4, 2, dropout=True),
    "dropout text": lambda c: c(3, 4, 2, dropout="half"),
    "dropout NaN": lambda c: c(3, 4, 2, dropout=float("nan")),
    "proj_size": lambda c: c(3, 4, proj_size=4),
    "proj_size above hidden": lambda c: c(3, 4, proj_size=9),
    "proj_size below zero": lambda c: c(3, 4, proj_size=-1),
    "nonlinearity keyword": lambda c: c(3, 4, nonlinearity="sigmoid"),
    "nonlinearity positional": lambda c: c(3, 4, 1, "sigmoid"),
    "mode twice": lambda c: c(3, 4, mode="LSTM"),
    "bad dtype": lambda c: c(3, 4, dtype=torch.int64),
    "bad device": lambda c: c(3, 4, device="nowhere"),
}

CALLS = {
    "nothing": lambda m: m(),
    "None": lambda m: m(None),
    "list": lambda m: m([[1.0] * I] * T),
    "unknown keyword": lambda m: m(Z(T, B, I), h0=None),
    "three positional": lambda m: m(Z(T, B, I), None, None),
    "0-D": lambda m: m(Z(())),
    "1-D": lambda m: m(Z(I)),
    "4-D": lambda m: m(Z(T, B, I, 1)),
    "wrong input size": lambda m: m(Z(T, B, I + 1)),
    "wrong input size, unbatched": lambda m: m(Z(T, I + 1)),
    "no steps": lambda m: m(Z(0, B, I)),
    "no steps, unbatched": lambda m: m(Z(0, I)),
    "no steps, no rows": lambda m: m(Z(0, 0, I)),
    "float64 input": lambda m: m(Z(T, B, I).double()),
    "bfloat16 input": lambda m: m(Z(T, B, I).bfloat16()),
    "float16 input": lambda m: m(Z(T, B, I).half()),
    "integer input": lambda m: m(Z(T, B, I).long()),
    "bool input": lambda m: m(Z(T, B, I).bool()),
    "complex input": lambda m: m(Z(T, B, I).cfloat()),
    "meta input": lambda m: m(Z(T, B, I, device="meta")),
    "sparse input": lambda m: m(Z(T, B, I).to_sparse()),
    "hx on meta": lambda m: m(Z(T, B, I), change(m, lambda s: s.to("meta"))),
    "hx float64": lambda m: m(Z(T, B, I), change(m, torch.Tensor.double)),
    "hx integers": lambda m: m(Z(T, B, I), change(m, torch.Tensor.long)),
    "hx 2-D": lambda m: m(Z(T, B, I), change(m, lambda s: s[0])),
    "hx 4-D": lambda m: m(Z(T, B, I), change(m, lambda s: s[None])),
    "hx 3-D, unbatched": lambda m: m(Z(T, I), random_hx(m)),
    "hx 1-D, unbatched": lambda m: m(Z(T, I), change(m, lambda s: s[0, 0])),
    "hx wrong size, unbatched": lambda m: m(Z(T, I), change(m, lambda s: s[:, 0, 1:])),
    "hx of other batch": lambda m: m(Z(T, B, I), random_hx(m, B + 1)),
    "hx of batch one": lambda m: m(Z(T, B, I), random_hx(m, 1)),
    "hx of other layers": lambda m: m(Z(T, B, I), change(m, lambda s: torch.cat((s, s)))),
    "hx of other width": lambda m: m(Z(T, B, I), change(m, lambda s: s[..., 1:])),
    "hx empty tuple": lambda m: m(Z(T, B, I), ()),
    "hx number": lambda m: m(Z(T, B, I), 0.0),
    "hx tuple of one": lambda m: m(Z(T, B, I), (Z(1, B, H),)),
    "hx pair": lambda m: m(Z(T, B, I), (Z(1, B, H), Z(1, B, H))),
    "hx triple": lambda m: m(Z(T, B, I), (Z(1, B, H),) * 3),
    "hx single": lambda m: m(Z(T, B, I), Z(1, B, H)),
    "hx single, two rows": lambda m: m(Z(T, B, I), Z(2, B, H)),
    "hx with None": lambda m: m(Z(T, B, I), (Z(1, B, H), None)),
    "hx dict": lambda m: m(Z(T, B, I), {"h": Z(1, B, H)}),
    "c of other width": lambda m: m(Z(T, B, I), (Z(1, B, H), Z(1, B, H + 1))),
    "c float64": lambda m: m(Z(T, B, I), (Z(1, B, H), Z(1, B, H).double())),
    "packed": lambda m: m(packed(I + 1)),
    "packed float64": lambda m: m(packed().to(torch.float64)),
    "packed 1-D": lambda m: m(PackedSequence(Z(9), torch.tensor([4, 3, 2]))),
    "packed 3-D": lambda m: m(PackedSequence(Z(9, 1, I), torch.tensor([4, 3, 2]))),
    "packed, hx of other batch": lambda m: m(packed(), random_hx(m, B + 1)),
    "packed, hx of smaller batch": lambda m: m(packed(), random_hx(m, B - 1)),
    "packed unsorted, hx of smaller batch": lambda m: m(packed(ordered=False), random_hx(m, B - 1)),
    "packed unsorted, hx of larger batch": lambda m: m(packed(ordered=False), random_hx(m, B + 1)),
    "packed, hx of other layers": lambda m: m(packed(), change(m, lambda s: torch.cat((s, s)))),
    "packed, hx of other width": lambda m: m(packed(), change(m, lambda s: s[..., 1:])),
    "packed, hx 2-D": lambda m: m(packed(), change(m, lambda s: s[0])),
    "packed, hx float64": lambda m: m(packed(), change(m, torch.Tensor.double)),
    "packed, hx single": lambda m: m(packed(), Z(1, B, H)),
    "packed, hx triple": lambda m: m(packed(), (Z(1, B, H),) * 3),
    "weight float64": lambda m: weights(m, lambda w: w.double())(Z(T, B, I)),
    "weight on meta": lambda m: weights(m, lambda w: w.to("meta"))(Z(T, B, I)),
}

CELL_CALLS = {
    "nothing": lambda m: m(),
    "None": lambda m: m(None),
    "0-D": lambda m: m(Z(())),
    "3-D": lambda m: m(Z(1, B, I)),
    "wrong input size": lambda m: m(Z(B, I + 1)),
    "wrong input size, unbatched": lambda m: m(Z(I + 1)),
    "float64 input": lambda m: m(Z(B, I).double()),
    "integer input": lambda m: m(Z(B, I).long()),
    "meta input": lambda m: m(Z(B, I, device="meta")),
    "hx of other batch": lambda m: m(Z(B, I), random_hx(m, B + 1)),
    "hx of batch one": lambda m: m(Z(B, I), random_hx(m, 1)),
    "hx of other width": lambda m: m(Z(B, I), change(m, lambda s: s[..., 1:])),
    "hx 3-D": lambda m: m(Z(B, I), change(m, lambda s: s[None])),
    "hx 1-D, batched": lambda m: m(Z(B, I), random_hx(m, None)),
    "hx 2-D, unbatched": lambda m: m(Z(I), random_hx(m)),
    "hx float64": lambda m: m(Z(B, I), change(m, torch.Tensor.double)),
    "hx on meta": lambda m: m(Z(B, I), change(m, lambda s: s.to("meta"))),
    "hx empty": lambda m: m(Z(B, I), ()),
    "hx tuple of one": lambda m: m(Z(B, I), (Z(B, H),)),
    "hx pair": lambda m: m(Z(B, I), (Z(B, H), Z(B, H))),
    "hx triple": lambda m: m(Z(B, I), (Z(B, H),) * 3),
    "hx single": lambda m: m(Z(B, I), Z(B, H)),
    "hx stacked": lambda m: m(Z(B, I), Z(2, B, H)),
}


def change(module: nn.Module, function):
    hx = random_hx(module)
    return tuple(map(function, hx)) if isinstance(hx, tuple) else function(hx)


def packed(size: int = I, ordered: bool = True) -> PackedSequence:
    lengths = [5, 4, 2, 1] if ordered else [2, 5, 1, 4]
    return pack_padded_sequence(Z(T, B, size), lengths, enforce_sorted=ordered)


def weights(module: nn.Module, function) -> nn.Module:
    module.weight_hh_l0 = nn.Parameter(function(module.weight_hh_l0.data))
    return module


def outcome(function, argument):
    """Return a call's result, or its error's type and message; and its warnings."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            result = function(argument)
        except Exception as error:
            result = type(error), str(error)
    return result, [(w.category, str(w.message)) for w in heard]


def same_outcome(theirs, ours, function) -> None:
    (expected, expected_warnings), (actual, actual_warnings) = outcome(function, theirs), outcome(function, ours)
    if isinstance(expected, tuple) and isinstance(expected[0], type):
        assert isinstance(actual, tuple), f"expected {expected}"
        assert actual[0] is expected[0]
        assert normal(actual[1]) == normal(expected[1])
    elif isinstance(expected, nn.Module):
        assert repr(actual) == repr(expected)
    elif getattr(expected[0], "device", None) == torch.device("meta"):
        assert [v.shape for v in actual[:1]] == [v.shape for v in expected[:1]]
    else:
        same(actual, expected)
    assert [w for w in actual_warnings if "oneDNN" not in w[1]] == [
        w for w in expected_warnings if "oneDNN" not in w[1]
    ]


def normal(message: str) -> str:
    """Without the class before `.forward()`: ours is inherited from a common base."""
    return re.sub(r"\w+\.forward\(\)", "forward()", message)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("case", list(CONSTRUCTIONS))
def test_construction(name, case):
    same_outcome(getattr(nn, name), getattr(fastrnn, name), CONSTRUCTIONS[case])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("layers", [1, 2])
def test_warning_for_dropout_with_one_layer(name, layers):
    same_outcome(getattr(nn, name), getattr(fastrnn, name), lambda c: c(3, 4, layers, dropout=0.5))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize(
    "build",
    [
        lambda c: c(),
        lambda c: c(3),
        lambda c: c(3, -4),
        lambda c: c(3, 4, width=1),
        lambda c: c(3.5, 4),
        lambda c: c(3, 4, dtype=torch.int64),
        lambda c: c(10, 0),
        lambda c: c(0, 10),
        lambda c: c(3, 4, 0),
    ],
)
def test_construction_of_cells(name, build):
    same_outcome(getattr(nn, name), getattr(fastrnn, name), build)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("case", list(CALLS))
def test_call(kind, case):
    same_outcome(*layer_pair(kind), CALLS[case])


@pytest.mark.parametrize("case", list(CALLS))
def test_call_of_projected_lstm(case):
    same_outcome(*layer_pair("lstm", proj_size=2), CALLS[case])


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("case", list(CALLS))
def test_call_of_batch_first(kind, case):
    same_outcome(*layer_pair(kind, batch_first=True, num_layers=2, bidirectional=True), CALLS[case])


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("case", list(CELL_CALLS))
def test_call_of_cells(kind, case):
    same_outcome(*cell_pair(kind), CELL_CALLS[case])


def test_cells_of_no_width():
    for name in ("LSTMCell", "GRUCell", "RNNCell"):
        same_outcome(getattr(nn, name)(10, 0), getattr(fastrnn, name)(10, 0), lambda m: m(Z(3, 10)))
        same_outcome(getattr(nn, name)(10, 0), getattr(fastrnn, name)(10, 0), lambda m: m(Z(3, 10), random_hx(m, 3)))


def test_unknown_nonlinearity_of_a_cell():
    same_outcome(*(c(3, 4, nonlinearity="relu6") for c in (nn.RNNCell, fastrnn.RNNCell)), lambda m: m(Z(2, 3)))
    same_outcome(*(c(3, 4, nonlinearity="relu6") for c in (nn.RNNCell, fastrnn.RNNCell)), lambda m: m(Z(2, 5)))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu"])
def test_packed_rows_that_are_not_those_of_batch_sizes(kind):
    theirs, ours = layer_pair(kind)
    packed = PackedSequence(torch.randn(1, I), torch.tensor([3, 2]))
    with pytest.raises(RuntimeError) as right:
        theirs(packed)
    with pytest.raises(RuntimeError, match=re.escape(str(right.value)[:40])):
        ours(packed)
