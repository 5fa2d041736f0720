"""Outputs, states and all gradients of the layers and cells against torch.nn, over their options and forms of call."""

from __future__ import annotations

import itertools

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, layer_pair, random_hx, same, same_training
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn

KINDS = list(LAYERS)
OPTIONS = [
    {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": first}
    for layers, both, bias, first in itertools.product((1, 2), (False, True), (False, True), (False, True))
]
PROJECTED = [{**options, "proj_size": 2} for options in OPTIONS]
CASES = [(kind, o) for kind in KINDS for o in OPTIONS] + [("lstm", o) for o in PROJECTED]


def name_of(options: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


def padded(options: dict, steps: int = T, batch: int = B, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*((batch, steps) if options.get("batch_first") else (steps, batch)), I, generator=generator)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{k}-{name_of(o)}" for k, o in CASES])
@pytest.mark.parametrize("form", ["no hx", "hx", "unbatched", "packed", "packed unsorted hx"])
def test_results_and_gradients(kind, options, form):
    theirs, ours = layer_pair(kind, **options)
    x = padded(options)
    if form == "unbatched":
        x = x[0] if options["batch_first"] else x[:, 0]
    hx = None if form in ("no hx", "packed") else random_hx(theirs, None if form == "unbatched" else B)
    states = () if hx is None else (hx if isinstance(hx, tuple) else (hx,))

    def call(module, x, *states):
        hx = None if not states else (states if len(states) > 1 else states[0])
        if form.startswith("packed"):
            lengths = [5, 3, 3, 1] if form == "packed" else [2, 5, 1, 4]
            x = pack_padded_sequence(x, lengths, options["batch_first"], enforce_sorted=form == "packed")
        return module(x, hx)

    same_training(theirs, ours, call, x, *states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(CELLS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [None, 1, B])
@pytest.mark.parametrize("given", [True, False])
def test_cells(kind, bias, batch, given):
    theirs, ours = cell_pair(kind, bias=bias)
    x = torch.randn(I) if batch is None else torch.randn(batch, I)
    hx = random_hx(theirs, batch) if given else None
    states = () if hx is None else (hx if isinstance(hx, tuple) else (hx,))

    def call(module, x, *states):
        return module(x, None if not states else (states if len(states) > 1 else states[0]))

    same_training(theirs, ours, call, x, *states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, B), (7, 1), (T, 0), (1, 0)])
def test_small_sizes(kind, steps, batch):
    theirs, ours = layer_pair(kind, num_layers=2, bidirectional=True)
    same_training(theirs, ours, lambda m, x: m(x), torch.randn(steps, batch, I), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(CELLS))
def test_cell_of_empty_batch(kind):
    theirs, ours = cell_pair(kind)
    same_training(theirs, ours, lambda m, x: m(x), torch.randn(0, I))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (8, 16)])
def test_odd_and_even_widths(kind, size):
    theirs, ours = layer_pair(kind, *size)
    same_training(theirs, ours, lambda m, x: m(x), torch.randn(T, B, size[0]), rtol=1e-4, atol=1e-5)


LAYOUTS = {
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "permuted": lambda x: x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "offset": lambda x: torch.cat((x.new_zeros(2, *x.shape[1:]), x))[2:],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts_of_input_and_states(kind, layout, batch_first):
    theirs, ours = layer_pair(kind, batch_first=batch_first, num_layers=2)
    hx = random_hx(theirs)

    def call(module, x, *states):
        states = tuple(LAYOUTS[layout](state) for state in states)
        return module(LAYOUTS[layout](x), states if len(states) > 1 else states[0])

    x = padded({"batch_first": batch_first})
    same_training(theirs, ours, call, x, *(hx if isinstance(hx, tuple) else (hx,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_non_contiguous_weights(kind):
    theirs, ours = layer_pair(kind)
    for module in (theirs, ours):
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight = getattr(module, name)
            weight.data = weight.data.t().contiguous().t()
    same_training(theirs, ours, lambda m, x: m(x), torch.randn(T, B, I), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_layout_of_the_output(kind, batch_first):
    theirs, ours = layer_pair(kind, batch_first=batch_first)
    x = padded({"batch_first": batch_first})
    for expected, actual in zip(theirs(x), ours(x), strict=True):
        if isinstance(expected, torch.Tensor):
            assert actual.stride() == expected.stride()
            assert actual.is_contiguous() == expected.is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_the_results(kind):
    theirs, ours = layer_pair(kind)
    x = torch.randn(T, B, I)
    hx = random_hx(theirs)
    assert type(ours(x)) is type(theirs(x)) is tuple
    assert type(ours(x)[1]) is type(theirs(x)[1])
    same(ours(input=x, hx=hx), theirs(input=x, hx=hx))
    packed = pack_sequence([x[:, 0], x[:3, 1]])
    assert type(ours(packed)[0]) is PackedSequence
    same(ours(packed), theirs(packed))


def test_lstm_takes_a_list_of_states_and_returns_a_tuple():
    theirs, ours = layer_pair("lstm")
    x, hx = torch.randn(T, B, I), list(random_hx(theirs))
    same(ours(x, hx), theirs(x, hx))
    assert type(ours(x, hx)[1]) is type(theirs(x, hx)[1]) is tuple
    theirs, ours = cell_pair("lstm")
    x, hx = torch.randn(B, I), list(random_hx(theirs))
    same(ours(x, hx), theirs(x, hx))
    assert type(ours(x, hx)) is type(theirs(x, hx)) is tuple


@pytest.mark.parametrize("kind", KINDS)
def test_states_come_back_into_the_next_call(kind):
    theirs, ours = layer_pair(kind, num_layers=2)
    x = torch.randn(2 * T, B, I)
    hx, outputs = None, []
    for chunk in x.split(3):
        y, hx = ours(chunk, hx)
        outputs.append(y)
    same((torch.cat(outputs), hx), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_padding_is_never_read(kind, bidirectional):
    _, ours = layer_pair(kind, bidirectional=bidirectional, num_layers=2)
    lengths = [2, 5, 3, 4]
    x = torch.randn(T, B, I)
    dirty = x.clone()
    for row, length in enumerate(lengths):
        dirty[length:, row] = torch.nan
    clean, spoiled = (ours(pack_padded_sequence(v, lengths, enforce_sorted=False)) for v in (x, dirty))
    same(spoiled, clean, rtol=0, atol=0)
    y, found = pad_packed_sequence(spoiled[0])
    assert found.tolist() == lengths
    assert not y.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_are_independent_and_nan_propagates(kind, bad):
    theirs, ours = layer_pair(kind)
    x = torch.randn(T, B, I)
    x[2, 1, 0] = bad
    expected, actual = theirs(x)[0], ours(x)[0]
    same(actual, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    clean = ours(x.nan_to_num(0, 0, 0))[0]
    same(actual[:, [0, 2, 3]], clean[:, [0, 2, 3]])
    same(actual[:2, 1], clean[:2, 1])


def test_cell_state_of_batch_one_broadcasts_in_packed_lstm():
    theirs, ours = layer_pair("lstm")
    packed = pack_padded_sequence(torch.randn(T, B, I), [5, 4, 2, 1])
    hx = (torch.randn(1, B, H), torch.randn(1, 1, H))
    same(ours(packed, hx), theirs(packed, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passed_in_is_changed_or_shared(kind):
    theirs, ours = layer_pair(kind, num_layers=2, batch_first=True)
    x, hx = torch.randn(B, T, I), random_hx(theirs)
    given = [x, *(hx if isinstance(hx, tuple) else (hx,)), *ours.parameters()]
    before = [v.detach().clone() for v in given]
    y, last = ours(x, hx)
    results = [y, *(last if isinstance(last, tuple) else (last,))]
    same(given, before, rtol=0, atol=0)
    storages = [v.untyped_storage().data_ptr() for v in results]
    assert len(set(storages)) == len(storages)
    assert not set(storages) & {v.untyped_storage().data_ptr() for v in given}


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_when_repeated(kind):
    _, ours = layer_pair(kind, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    same(ours(x), ours(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_meta(kind):
    with torch.device("meta"):
        theirs, ours = layer_pair(kind, num_layers=2, batch_first=True)
    for x in (torch.randn(B, T, I, device="meta"), torch.randn(T, I, device="meta")):
        expected, actual = theirs(x), ours(x)
        assert [(v.shape, v.device) for v in torch.utils._pytree.tree_leaves(actual)] == [
            (v.shape, v.device) for v in torch.utils._pytree.tree_leaves(expected)
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_subclasses(kind):
    class Marked(torch.Tensor):
        pass

    theirs, ours = layer_pair(kind)
    x = torch.randn(T, B, I)
    expected, actual = theirs(x.as_subclass(Marked)), ours(x.as_subclass(Marked))
    assert type(actual[0]) is type(expected[0])
    same(ours(x), actual[0:2])


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_agrees(kind):
    theirs, ours = layer_pair(kind, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    expected = theirs(x)
    for backend in ("auto", "fused", "reference", "torch"):
        same(ours(x, backend=backend), expected, rtol=1e-4, atol=1e-5)
    ours.backend = "reference"
    same(ours(x), ours(x, backend="reference"), rtol=0, atol=0)
    assert fastrnn.LSTM.backend == "auto"
