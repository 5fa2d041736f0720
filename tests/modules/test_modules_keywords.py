"""Our own keywords: `lengths=`, `reset=`, `backend=`, and the single step of a stream."""

from __future__ import annotations

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, gradients, layer_pair, random_hx, same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

KINDS = list(LAYERS)
LOOSE = {"rtol": 1e-4, "atol": 1e-5}
OPTIONS = [
    {},
    {"batch_first": True},
    {"num_layers": 2},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
]
BACKENDS = ["auto", "reference"]


def as_tuple(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def give_hx(states):
    return states if len(states) > 1 else states[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [False, True])
def test_lengths_do_what_packing_does(kind, options, backend, given):
    theirs, ours = layer_pair(kind, **options)
    theirs.eval(), ours.eval()  # packed data and padded data have not as many elements to drop
    first = options.get("batch_first", False)
    lengths = [2, 5, 1, 4]
    x = torch.randn(B, T, I) if first else torch.randn(T, B, I)
    hx = random_hx(theirs) if given else None
    y, last = theirs(pack_padded_sequence(x, lengths, first, enforce_sorted=False), hx)
    y, _ = pad_packed_sequence(y, first, total_length=T)
    expected = (y, last)
    actual = ours(x, hx, lengths=lengths, backend=backend)
    same(actual, expected, **LOOSE)
    for form in (tuple(lengths), torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32)):
        same(ours(x, hx, lengths=form, backend=backend), actual, rtol=0, atol=0)
    same(gradients(ours, actual), gradients(theirs, expected), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_neither_read_nor_given_a_gradient(kind, backend):
    _, ours = layer_pair(kind, num_layers=2, bidirectional=True)
    lengths = [2, 5, 1, 4]
    x = torch.randn(T, B, I)
    dirty = x.clone()
    for row, length in enumerate(lengths):
        dirty[length:, row] = torch.nan
    found = []
    for v in (x, dirty):
        v.requires_grad_()
        result = ours(v, lengths=lengths, backend=backend)
        found.append((result, gradients(ours, result, v)))
    same(found[1], found[0], rtol=0, atol=0)
    for row, length in enumerate(lengths):
        assert not found[0][1]["input 0"][length:, row].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_no_steps_keeps_its_state(kind, backend):
    _, ours = layer_pair(kind)
    hx = random_hx(ours)
    y, last = ours(torch.randn(T, B, I), hx, lengths=[3, 0, 5, 0], backend=backend)
    assert not y[:, [1, 3]].any()
    for new, old in zip(as_tuple(last), as_tuple(hx), strict=True):
        assert torch.equal(new[:, [1, 3]], old[:, [1, 3]])
        assert not torch.equal(new[:, 0], old[:, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_reset_starts_a_segment_from_the_initial_state(kind, options, backend):
    """Against one call for each segment of each row."""
    theirs, ours = layer_pair(kind, **options)
    theirs.eval(), ours.eval()
    first = options.get("batch_first", False)
    x, hx = torch.randn(T, B, I), random_hx(theirs)
    reset = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    rows, states = [], []
    for row in range(B):
        own = give_hx(tuple(s[:, row : row + 1] for s in as_tuple(hx)))
        starts = sorted({0, *reset[:, row].nonzero().flatten().tolist()})
        outputs = []
        for start, end in zip(starts, [*starts[1:], T], strict=True):
            piece = x[start:end, row : row + 1]
            y, last = theirs(piece.transpose(0, 1) if first else piece, own)
            outputs.append(y.transpose(0, 1) if first else y)
            if start == 0:
                earliest = as_tuple(last)
        # A direction ends in the segment that it comes to last: the last one, or in reverse the first.
        directions = 1 + bool(theirs.bidirectional)
        ends = [
            torch.stack([(e if i % directions else s)[i] for i in range(len(s))])
            for s, e in zip(as_tuple(last), earliest, strict=True)
        ]
        rows.append(torch.cat(outputs))
        states.append(ends)
    y = torch.cat(rows, 1)
    last = tuple(torch.cat(column, 1) for column in zip(*states, strict=True))
    expected = (y.transpose(0, 1) if first else y, give_hx(last))
    if first:
        x, reset = x.transpose(0, 1), reset.t()
    actual = ours(x, hx, reset=reset, backend=backend)
    same(actual, expected, **LOOSE)
    same(gradients(ours, actual), gradients(theirs, expected), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_reset_unbatched_and_with_lengths(kind):
    _, ours = layer_pair(kind, num_layers=2)
    x = torch.randn(T, I)
    reset = torch.tensor([False, False, True, False, True])
    expected = torch.cat([ours(piece)[0] for piece in x.split([2, 2, 1])])
    same(ours(x, reset=reset)[0], expected, **LOOSE)
    x = torch.randn(T, 2, I)
    both = ours(x, reset=torch.stack((reset, ~reset), 1), lengths=[3, 5])
    same(both[0][:3, 0], ours(x[:3, 0], reset=reset[:3])[0], **LOOSE)
    same(both[0][:, 1], ours(x[:, 1], reset=~reset)[0], **LOOSE)
    assert not both[0][3:, 0].any()
    same(as_tuple(both[1])[0][:, 0], as_tuple(ours(x[:3, 0], reset=reset[:3])[1])[0], **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"batch_first": True}, {"bias": False}])
@pytest.mark.parametrize("batch", [None, 1, B])
def test_steps_of_a_stream_add_up_to_the_sequence(kind, options, batch):
    _, ours = layer_pair(kind, **options)
    x = torch.randn(T, I) if batch is None else torch.randn(T, batch, I)
    state, outputs = None, []
    for t in range(T):
        y, state = ours.step(x[t], state)
        outputs.append(y)
    whole = ours(x.transpose(0, 1) if ours.batch_first and batch is not None else x)
    y = whole[0].transpose(0, 1) if ours.batch_first and batch is not None else whole[0]
    same((torch.stack(outputs), state), (y, whole[1]), **LOOSE)
    for backend in ("reference", "torch"):
        same(ours.step(x[0], state, backend=backend), ours.step(x[0], state), **LOOSE)


def test_steps_with_projection_and_gradients():
    theirs, ours = layer_pair("lstm", proj_size=2, num_layers=2)
    x = torch.randn(T, B, I)
    state, outputs = None, []
    for t in range(T):
        y, state = ours.step(x[t], state)
        outputs.append(y)
    result = torch.stack(outputs), state
    expected = theirs(x)
    same(result, expected, **LOOSE)
    same(gradients(ours, result), gradients(theirs, expected), **LOOSE)


def raises(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_errors_of_step():
    ours = fastrnn.GRU(I, H, batch_first=True)
    raises(ValueError, "step: expected bidirectional=False", lambda: fastrnn.GRU(I, H, bidirectional=True).step(None))
    raises(ValueError, r"step: expected x to be a 1-D or 2-D tensor.*got 3-D", lambda: ours.step(torch.zeros(1, B, I)))
    raises(ValueError, "step: expected x .* got list", lambda: ours.step([1.0]))
    raises(RuntimeError, "input_size. Expected 3, got 4", lambda: ours.step(torch.zeros(B, I + 1)))
    raises(RuntimeError, "Expected hidden size", lambda: ours.step(torch.zeros(B, I), torch.zeros(1, B + 1, H)))
    raises(ValueError, "dtype", lambda: ours.step(torch.zeros(B, I).double()))


def test_errors_of_lengths():
    ours = fastrnn.LSTM(I, H)
    x = torch.zeros(T, B, I)
    raises(ValueError, r"lengths: expected shape \(4,\).* got \(3,\)", lambda: ours(x, lengths=[1, 2, 3]))
    raises(ValueError, r"lengths: expected shape", lambda: ours(x, lengths=torch.ones(B, 1, dtype=torch.int64)))
    raises(ValueError, "from 0 to 5.* got 1 to 6", lambda: ours(x, lengths=[1, 6, 2, 3]))
    raises(ValueError, "from 0 to 5.* got -1 to 3", lambda: ours(x, lengths=[1, -1, 2, 3]))
    raises(TypeError, "lengths: expected integers, got torch.float32", lambda: ours(x, lengths=torch.ones(B)))
    raises(TypeError, "lengths: expected integers, got torch.bool", lambda: ours(x, lengths=[True] * B))
    raises(TypeError, "lengths: expected an integer tensor", lambda: ours(x, lengths=3))
    raises(TypeError, "lengths: expected an integer tensor", lambda: ours(x, lengths=["a"] * B))
    packed = pack_padded_sequence(x, [5, 4, 2, 1])
    raises(ValueError, "lengths: expected None with a PackedSequence", lambda: ours(packed, lengths=[5, 4, 2, 1]))
    raises(RuntimeError, "input_size. Expected 3", lambda: ours(torch.zeros(T, B, 4), lengths=[1] * B))
    raises(RuntimeError, "hidden", lambda: ours(x, random_hx(ours, 2), lengths=[1] * B))


def test_errors_of_reset():
    ours = fastrnn.LSTM(I, H, batch_first=True)
    x = torch.zeros(B, T, I)
    raises(ValueError, r"reset: expected shape \(4, 5\).*got \(5, 4\)", lambda: ours(x, reset=torch.zeros(T, B).bool()))
    raises(ValueError, r"reset: expected shape \(5,\)", lambda: ours(x[0], reset=torch.zeros(1, T).bool()))
    raises(TypeError, "reset: expected a bool tensor, got torch.float32", lambda: ours(x, reset=torch.zeros(B, T)))
    raises(TypeError, "reset: expected a bool tensor, got list", lambda: ours(x, reset=[True]))
    packed = pack_padded_sequence(x, [5, 4, 2, 1], True)
    raises(ValueError, "reset: .* reset= and lengths=", lambda: ours(packed, reset=torch.zeros(B, T).bool()))


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_errors_of_backend():
    ours = fastrnn.LSTM(I, H)
    x = torch.zeros(T, B, I)
    raises(ValueError, "backend: expected one of 'auto', .* got 'cuda'", lambda: ours(x, backend="cuda"))
    raises(ValueError, "'torch' with lengths=", lambda: ours(x, backend="torch", lengths=[1] * B))
    raises(
        ValueError, "'torch' with lengths= or reset=", lambda: ours(x, backend="torch", reset=torch.ones(T, B).bool())
    )
    complex_ = fastrnn.LSTM(I, H, dtype=torch.complex64)
    raises(
        ValueError, "backend='fused': expected .* got torch.complex64", lambda: complex_(x.cfloat(), backend="fused")
    )
    cell = fastrnn.GRUCell(I, H)
    cell.backend = "fused"
    raises(ValueError, "backend='fused'", lambda: cell.to(torch.complex64)(x[0].cfloat()))


@pytest.mark.parametrize("kind", list(CELLS))
def test_backend_of_a_cell(kind):
    theirs, ours = cell_pair(kind)
    x = torch.randn(B, I)
    for backend in ("fused", "reference", "torch"):
        ours.backend = backend
        same(ours(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_keywords_with_what_the_kernels_cannot_take(kind):
    """The reference serves tensors that the kernels do not know."""
    theirs, ours = layer_pair(kind, dtype=torch.complex64) if kind != "rnn_relu" else layer_pair(kind)
    dtype = torch.complex64 if kind != "rnn_relu" else torch.float32
    x = torch.randn(T, B, I, dtype=dtype)
    same(ours(x, lengths=[5] * B)[0], theirs(x)[0], **LOOSE)
    same(ours(x, reset=torch.zeros(T, B).bool())[0], theirs(x)[0], **LOOSE)


def test_keywords_reach_a_module_in_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.GRU(I, H, batch_first=True)

        def forward(self, x, **options):
            return self.rnn(x, **options)[0]

    model = Model()
    x = torch.randn(B, T, I)
    same(model(x, lengths=[T] * B), model(x), rtol=0, atol=0)
