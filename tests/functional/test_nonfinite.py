"""NaN and infinity as torch.nn has them: in outputs and gradients the same elements are NaN, +∞ or -∞.

One exception is documented in docs/design/0002-cpu-limits.md: a single step from no state does not read the recurrent
weights, so that it does not notice what is not finite in them.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from dropin_cases import pair
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import _C, functional
from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, sequence

B, I, H = 2, 3, 5  # noqa: E741 - letters as in the equations
KINDS = {
    "lstm": ("LSTM", {}),
    "lstm with a projection": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
STEPS = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn_tanh": "RNNCell"}
INF, NAN = float("inf"), float("nan")
FORMATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# 16-bit formats differ in the conversions alone, which every instruction set has of its own.
SETTINGS = [*itertools.product(_C.capabilities(), FORMATS[:2]), *((_C.capability(), dtype) for dtype in FORMATS[2:])]


def masks(t: Tensor) -> Tensor:
    return torch.stack((t.isnan(), t == INF, t == -INF))


def numbers(module: nn.Module, steps: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The input, states, and gradients of y and the final states of a call of `module`."""
    g = torch.Generator().manual_seed(1)
    if isinstance(module, nn.RNNCellBase):
        sizes = {"x": (B, I), "h0": (B, H), "c0": (B, H)}
        outputs = {"grad h": (B, H), "grad c": (B, H)}
    else:
        rows, width = module.num_layers * (2 if module.bidirectional else 1), module.proj_size or H
        sizes = {"x": (steps, B, I), "h0": (rows, B, width), "c0": (rows, B, H)}
        outputs = {
            "grad y": (steps, B, width * rows // module.num_layers),
            "grad h": sizes["h0"],
            "grad c": sizes["c0"],
        }
    return {name: torch.randn(*size, generator=g).to(dtype) for name, size in {**sizes, **outputs}.items()}


def call(module: nn.Module, given: dict[str, Tensor], loss: str, packed: bool) -> dict[str, Tensor]:
    """Outputs, and gradients of all that there is, by name; zeros where nothing depends on a tensor."""
    states = [given[name] for name in ("h0", "c0") if name in given]
    x = pack_padded_sequence(given["x"], torch.tensor([len(given["x"]), 1])) if packed else given["x"]
    out = module(x, None if not states else (tuple(states) if len(states) > 1 else states[0]))
    if isinstance(module, nn.RNNCellBase):
        outputs = dict(zip("hc", out if isinstance(out, tuple) else (out,), strict=False))
    else:
        y, finals = out
        outputs = {"y": y.data if isinstance(y, PackedSequence) else y}
        outputs.update(zip("hc", finals if isinstance(finals, tuple) else (finals,), strict=False))
    chosen = [name for name in outputs if name in loss]
    seeds = [given[f"grad {name}"] for name in chosen]
    if packed and "y" in chosen:
        seeds[0] = pack_padded_sequence(seeds[0], torch.tensor([len(seeds[0]), 1])).data
    leaves = {"x": given["x"], **{n: given[n] for n in ("h0", "c0") if n in given}, **dict(module.named_parameters())}
    found = torch.autograd.grad([outputs[n] for n in chosen], list(leaves.values()), seeds, allow_unused=True)
    gradients = {
        f"∂{n}": torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)
    }
    return {**{n: t.detach() for n, t in outputs.items()}, **gradients}


def places(module: nn.Module, given: dict[str, Tensor], loss: str):
    """Yield the places to make infinite or NaN: one element of each tensor, in every gate of the weights."""
    for name, t in given.items():
        if name.startswith("grad ") and name[-1] not in loss:
            continue
        yield name, (0,) * t.dim()
        if t.dim() == 3 and name in ("x", "grad y") and len(t) > 1:
            yield name, (len(t) - 1, 0, 0)
    for name, t in module.named_parameters():
        for gate in range(0, len(t), H):
            yield name, (gate,) + (0,) * (t.dim() - 1)


def compare(theirs, ours, given, losses, packed=False) -> None:
    given = {n: t.requires_grad_(not n.startswith("grad")) for n, t in given.items()}
    single = isinstance(theirs, nn.RNNCellBase) or len(given["x"]) == 1
    for loss in losses:
        for (name, index), value in itertools.product(places(theirs, given, loss), (NAN, INF, -INF)):
            if single and "h0" not in given and name.startswith("weight_hh"):
                continue  # the exception
            results = []
            for module in (theirs, ours):
                target = dict(module.named_parameters()).get(name, given.get(name))
                before = target[index].item()
                with torch.no_grad():
                    target[index] = value
                results.append(call(module, given, loss, packed))
                with torch.no_grad():
                    target[index] = before
            for result, wanted in results[0].items():
                at = f"{result} with {name}{list(index)} = {value}, loss on {loss}, states {'h0' in given}"
                assert torch.equal(masks(results[1][result]), masks(wanted)), at


def check(theirs, ours, steps, dtype, states, losses, packed=False) -> None:
    given = numbers(theirs, steps, dtype)
    if not states:
        given = {n: t for n, t in given.items() if n not in ("h0", "c0")}
    elif not isinstance(theirs, nn.LSTM | nn.LSTMCell):
        del given["c0"]
    compare(theirs, ours, given, losses, packed)


@pytest.mark.parametrize(("capability", "dtype"), SETTINGS, ids=str)
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, states, capability, dtype):
    _C.set_capability(capability)
    name, options = KINDS[kind]
    theirs, ours = (m.to(dtype) for m in pair(name, I, H, **options))
    for steps in (1, 3):
        check(theirs, ours, steps, dtype, states, ["yhc", "h", *(["c"] if name == "LSTM" else [])])


@pytest.mark.parametrize("dtype", FORMATS[:2], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_deep_and_both_directions(kind, packed, dtype):
    name, options = KINDS[kind]
    theirs, ours = (m.to(dtype) for m in pair(name, I, H, num_layers=2, bidirectional=True, **options))
    for steps in (2, 1) if packed else (2,):
        check(theirs, ours, steps, dtype, False, ["yhc"], packed)


@pytest.mark.parametrize("kind", ["lstm", "lstm with a projection"])
def test_packed_with_a_loss_on_the_cell_state(kind):
    name, options = KINDS[kind]
    theirs, ours = pair(name, I, H, **options)
    for steps, states in itertools.product((1, 3), (False, True)):
        check(theirs, ours, steps, torch.float32, states, ["c"], packed=True)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("kind", STEPS)
def test_cells(kind, states, dtype):
    theirs, ours = (m.to(dtype) for m in pair(STEPS[kind], I, H))
    check(theirs, ours, 1, dtype, states, ["h", *(["c", "hc"] if kind == "lstm" else [])])


@pytest.mark.parametrize("rows", [1, 20])  # products of few rows, and those of BLAS
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_zero_state_times_nan_in_sizes_of_every_product(cell, steps, rows):
    name, options = KINDS[cell]
    theirs, ours = pair(name, 24, 33, **options)
    x = torch.randn(steps, rows, 24)
    for at in (0, steps - 1):
        seed = torch.ones(steps, rows, 33)
        seed[at, 0] = NAN
        found = [torch.autograd.grad(m(x)[0], m.weight_hh_l0, seed)[0] for m in (theirs, ours)]
        assert found[0].isnan().any()
        assert torch.equal(*(g.isnan() for g in found))


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("cell", CELLS)
def test_a_weight_of_h_where_h_is_zero(cell, value, rows):
    """A single step from no state notices a recurrent weight that is infinite or NaN: zero times it is NaN."""
    name, options = KINDS[cell]
    theirs, ours = pair(name, I, H, **options)
    for module in (theirs, ours):
        module.weight_hh_l0.data[1, 2] = value
    check(theirs, ours, 1, torch.float32, False, ["y"])
    x = torch.randn(1, rows, I)
    found = [m(x)[0] for m in (theirs, ours)]
    assert found[0].isnan().any()
    assert torch.equal(*(y.isnan() for y in found))


@pytest.mark.parametrize("layout", ["lengths", "reset"])
def test_rows_and_segments_that_start_from_no_state(layout):
    """A row of `lengths` and a segment of `reset` are what they are on their own."""
    for cell in CELLS:
        gates = CELLS[cell].gates
        weights = LayerWeights(*(torch.randn(gates * H, n, requires_grad=True) for n in (I, H)))
        x = torch.randn(4, 1, I)
        x[3] = NAN  # in padding, or in a segment of its own
        if layout == "lengths":
            y, _ = sequence(cell, x, weights, lengths=torch.tensor([3]))
            alone = sequence(cell, x[:3], weights)[0]
        else:
            y, _ = sequence(cell, x, weights, reset=torch.tensor([[False], [False], [False], [True]]))
            alone = torch.cat((sequence(cell, x[:3], weights)[0], sequence(cell, x[3:], weights)[0]))
        for loss, other in ((y[: len(alone)], alone),):
            found, wanted = (torch.autograd.grad(o.sum(), weights[:2]) for o in (loss, other))
            for a, b in zip(found, wanted, strict=True):
                assert torch.equal(masks(a), masks(b)), cell


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 3])])
def test_rows_of_an_embedding_that_no_id_names(value, lengths):
    """Infinite or NaN rows that are not looked up, or only in padding, change no gradient and get zeros."""
    ids = torch.randint(0, 3, (6, 2))
    if lengths is not None:
        ids[3:, 1] = 4
    matrix = torch.randn(5, I)
    matrix[3], matrix[4] = value, -value
    matrix.requires_grad_()
    weights = LayerWeights(*(torch.randn(4 * H, n, requires_grad=True) for n in (I, H)))
    found, wanted = (
        torch.autograd.grad(functional.lstm(x, weights, lengths=lengths, embedding=e)[0].sum(), (matrix, weights.w_ih))
        for x, e in ((ids, matrix), (nn.functional.embedding(ids, matrix), None))
    )
    assert torch.equal(found[0][3:], torch.zeros(2, I))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_that_are_not_finite_leave_unused_rows_alone():
    ids, matrix = torch.randint(0, 3, (6, 2)), torch.randn(5, I, requires_grad=True)
    w_ih = torch.randn(4 * H, I)
    w_ih[1, 1] = INF
    weights = LayerWeights(w_ih.requires_grad_(), torch.randn(4 * H, H))
    (found,) = torch.autograd.grad(functional.lstm(ids, weights, embedding=matrix)[0].sum(), matrix)
    assert torch.equal(found[3:], torch.zeros(2, I))
    assert found[:3].isnan().any()
