"""Dtypes: accuracy in each against torch's own, and autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, gradients, layer_pair, leaves, pair, random_hx, same
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import gallery

KINDS = list(LAYERS)
FORMATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def error(found, exact) -> float:
    return max((f.double() - e).abs().max().item() for f, e in zip(found, exact, strict=True) if e.numel())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("form", ["layer", "two layers, both directions", "packed", "cell"])
def test_no_less_accurate_than_torch(kind, dtype, form):
    """Error against float64 at most twice torch's own, and a rounding of the result."""
    options = {"num_layers": 2, "bidirectional": True} if "two" in form else {}
    theirs, ours = cell_pair(kind, 16, 24) if form == "cell" else layer_pair(kind, 16, 24, **options)
    theirs.to(dtype), ours.to(dtype)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(*((B, 16) if form == "cell" else (20, B, 16))).to(dtype)

    def run(module, x):
        x = x.requires_grad_()
        result = module(pack_padded_sequence(x, [20, 12, 7, 1]) if form == "packed" else x)
        slopes = gradients(module, result, x)
        return [v.detach() for v in leaves(result)], list(slopes.values())

    want = run(exact, x.detach().double())
    mine, torchs = run(ours, x.detach().clone()), run(theirs, x.detach().clone())
    # The slope of relu jumps at zero, so that a rounding may change a gradient by all there is.
    for what in (0,) if kind == "rnn_relu" and torch.finfo(dtype).bits == 16 else (0, 1):
        size = max(v.abs().max().item() for v in want[what])
        assert all(v.dtype is dtype for v in mine[what])
        # A rounding of the result; in float64 torch's own numbers are the exact ones, and a few roundings may differ.
        allowed = torch.finfo(dtype).eps * size * (100 if dtype is torch.float64 else 1)
        assert error(mine[what], want[what]) <= 2 * error(torchs[what], want[what]) + allowed


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex(kind, cell):
    theirs, ours = (cell_pair if cell else layer_pair)(kind, dtype=torch.complex64)
    x = torch.randn(*((B, I) if cell else (T, B, I)), dtype=torch.complex64)
    same(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


AUTOCAST = [torch.bfloat16, torch.float16]
FORMS = ["no hx", "float32 hx", "low hx", "low input", "low input and hx", "packed", "packed low hx"]


def autocast_call(module, form, target, cell):
    x = torch.randn(*((B, I) if cell else (T, B, I)), generator=torch.Generator().manual_seed(0))
    hx = None
    if "hx" in form and form != "no hx":
        hx = random_hx(module, dtype=target if "low" in form else torch.float32)
    if "low input" in form:
        x = x.to(target)
    if "packed" in form:
        x = pack_padded_sequence(x, [5, 4, 2, 1])
    with torch.autocast("cpu", dtype=target):
        return module(x, hx)


MODULES = [(kind, cell, 0) for kind in KINDS for cell in (False, True)] + [("lstm", False, 2)]


@pytest.mark.parametrize(("kind", "cell", "proj_size"), MODULES)
@pytest.mark.parametrize("target", AUTOCAST)
@pytest.mark.parametrize("form", FORMS)
def test_autocast(kind, cell, proj_size, target, form):
    if not (cell and "packed" in form):
        for low_weights in (False, True):
            for training in (False, True):
                check_autocast(kind, cell, proj_size, target, form, low_weights, training)


def check_autocast(kind, cell, proj_size, target, form, low_weights, training):
    options = {"proj_size": proj_size} if proj_size else {}
    theirs, ours = cell_pair(kind) if cell else layer_pair(kind, **options)
    exact = autocast_exact(theirs, form, cell)
    if low_weights:
        theirs.to(target), ours.to(target)
    with torch.set_grad_enabled(training):
        actual = autocast_call(ours, form, target, cell)
        assert all(torch.isfinite(v).all() for v in leaves(actual))
        try:
            expected = autocast_call(theirs, form, target, cell)
        except RuntimeError as failure:  # oneDNN has no float16 LSTM for training, or none on this machine
            if "primitive descriptor" not in str(failure) and "mkldnn" not in str(failure):
                raise
            return
        assert [v.dtype for v in leaves(actual)] == [v.dtype for v in leaves(expected)]
        epsilon = torch.finfo(target).eps
        assert error(leaves(actual), leaves(exact)) <= 2 * error(leaves(expected), leaves(exact)) + epsilon
        if training:
            slopes = gradients(ours, actual)
            assert [g.dtype for g in slopes.values()] == [g.dtype for g in gradients(theirs, expected).values()]


def autocast_exact(module, form, cell):
    exact = copy.deepcopy(module).double()
    x = torch.randn(*((B, I) if cell else (T, B, I)), generator=torch.Generator().manual_seed(0)).double()
    hx = random_hx(module, dtype=torch.float64) if "hx" in form and form != "no hx" else None
    return exact(pack_padded_sequence(x, [5, 4, 2, 1]) if "packed" in form else x, hx)


def test_autocast_of_other_formats_is_torchs_business():
    theirs, ours = layer_pair("lstm", dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(ours(x), theirs(x))
    theirs, ours = layer_pair("gru")
    x = torch.randn(T, B, I, dtype=torch.float64)
    for module in (theirs, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="dtype"):
            module(x)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_in_training_follows_torchs_gradients(kind):
    theirs, ours = layer_pair(kind, 16, 24, num_layers=2)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(T, B, 16)
    found = []
    for module in (theirs, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)[0]
        found.append([*gradients(module, y).values()])
    want = [*gradients(exact, exact(x.double())[0]).values()]
    size = max(g.abs().max().item() for g in want)
    assert error(found[1], want) <= 2 * error(found[0], want) + 0.02 * size


@pytest.mark.parametrize("kind", list(CELLS))
def test_autocast_is_on_again_after_a_call(kind):
    _, ours = layer_pair(kind, I, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours(torch.randn(T, B, I))
        assert torch.is_autocast_enabled("cpu")
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype is torch.bfloat16


@pytest.mark.parametrize("kind", list(LAYERS))
def test_autocast_leaves_float64_alone(kind):
    theirs, ours = layer_pair(kind, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lengths = torch.full((B,), T)
    with torch.autocast("cpu", torch.bfloat16):
        expected = theirs(x)
        for found in (ours(x), ours(x, lengths=lengths), ours(x, reset=torch.zeros(T, B, dtype=torch.bool))):
            same(found, expected, rtol=1e-10, atol=1e-12)
    table, ids = torch.randn(2, I, dtype=torch.float64), torch.randint(0, 2, (T, B))
    with torch.autocast("cpu", torch.bfloat16):
        same(ours(ids, embedding=table), theirs(table[ids]), rtol=1e-10, atol=1e-12)
    network = gallery.min_gru(I, H).double()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    same(found, network(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("batch_sizes", [[2, 2], [3, 2], [1, 1], [2]])
@pytest.mark.parametrize("given", [False, True])
def test_dtype_of_packed_results_under_autocast(kind, batch_sizes, given):
    """torch has a path of its own for packed rows of one length."""
    theirs, ours = layer_pair(kind)
    packed = PackedSequence(torch.randn(sum(batch_sizes), I), torch.tensor(batch_sizes))
    hx = random_hx(theirs, batch_sizes[0]) if given else None
    with torch.autocast("cpu", torch.bfloat16):
        same(ours(packed, hx), theirs(packed, hx), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("states", [False, True])
def test_autocast_of_an_empty_batch(states):
    """Without rows torch does not take oneDNN, whose results would be in the lower format."""
    theirs, ours = pair("LSTM", 3, 4)
    x = torch.randn(2, 0, 3)
    hx = (torch.zeros(1, 0, 4), torch.zeros(1, 0, 4)) if states else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        right, found = theirs(x, hx), ours(x, hx)
    assert found[0].dtype == right[0].dtype
    assert [s.dtype for s in found[1]] == [s.dtype for s in right[1]]
