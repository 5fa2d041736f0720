"""Learned initial states, and `initial=`: what a segment starts from where hx is an earlier call's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, gradients, same
from initial_states import LOOSE, OPTIONS, make, states_of, x_for
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

KINDS = [*LAYERS, "custom"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_same_as_given_states(kind, options):
    module = make(kind, **options)
    x = x_for(module)
    calls = [{}, {"lengths": [2, 0, 5, 3]}, {"backend": "reference"}, {"recompute": 2}]
    calls.append({"reset": torch.rand(x.shape[:2]) < 0.4})
    for keywords in calls:
        actual, expected = module(x, **keywords), module(x, states_of(module), **keywords)
        same(actual, expected, rtol=0, atol=0)
        same(gradients(module, actual), gradients(module, expected), **LOOSE)
    grads = gradients(module, module(x))
    assert all(g is not None and g.any() for name, g in grads.items() if name.startswith("initial_"))


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched_packed_step_and_double_backward(kind):
    module = make(kind)
    x = torch.randn(T, I)
    same(module(x), module(x, states_of(module, None)), rtol=0, atol=0)
    packed = pack_padded_sequence(torch.randn(T, B, I), [2, 5, 1, 4], enforce_sorted=False)
    same(module(packed)[0].data, module(packed, states_of(module))[0].data, rtol=0, atol=0)
    same(module(packed)[1], module(packed, states_of(module))[1], rtol=0, atol=0)
    x = torch.randn(B, I)
    same(module.step(x), module.step(x, states_of(module)), rtol=0, atol=0)
    same(module.step(x[0]), module.step(x[0], states_of(module, None)), rtol=0, atol=0)

    module = make(kind).double()
    x = torch.randn(3, 2, I, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters() if name.startswith("initial_")]
    initial = [module.get_parameter(name) for name in names]

    def run(*values):
        given = dict(
            zip([name for name, _ in module.named_parameters() if name[:8] == "initial_"], values, strict=True)
        )
        return torch.func.functional_call(module, given, (x,))[0]

    assert torch.autograd.gradcheck(run, initial)
    assert torch.autograd.gradgradcheck(run, initial)


def test_names_shapes_and_repr():
    lstm = fastrnn.LSTM(3, 8, 2, bidirectional=True, proj_size=5, learn_initial_state=True)
    own = {name: tuple(p.shape) for name, p in lstm.named_parameters() if name.startswith("initial_")}
    parts = [f"l{layer}{suffix}" for layer in range(2) for suffix in ("", "_reverse")]
    assert own == {f"initial_{s}_{part}": ((5,) if s == "h" else (8,)) for part in parts for s in "hc"}
    assert "learn_initial_state=True" in repr(lstm)
    assert "learn_initial_state" not in repr(fastrnn.LSTM(3, 8))
    assert not any("initial" in name for names in lstm._all_weights for name in names)
    assert not any(p.any() for name, p in lstm.named_parameters() if name.startswith("initial_"))
    plain = fastrnn.LSTM(3, 8)
    assert not any("initial" in name for name in plain.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_a_module_without(kind):
    torch.manual_seed(3)
    module = make(kind, num_layers=2)
    torch.manual_seed(0)
    expected = make(kind, num_layers=2, learn_initial_state=False)
    for name, p in expected.named_parameters():
        assert torch.equal(p, module.get_parameter(name))
    torch.manual_seed(5)
    module.reset_parameters()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    expected.reset_parameters()
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(p, module.get_parameter(name)) for name, p in expected.named_parameters())
    assert not any(p.any() for name, p in module.named_parameters() if name.startswith("initial_"))


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind):
    name, extra = CELLS[kind]
    cell = getattr(fastrnn, name)(I, H, **extra, learn_initial_state=True)
    names = ["initial_h", "initial_c"] if kind == "lstm" else ["initial_h"]
    assert [n for n, _ in cell.named_parameters() if n.startswith("initial_")] == names
    with torch.no_grad():
        for n in names:
            cell.get_parameter(n).normal_()
    for x in (torch.randn(B, I), torch.randn(I)):
        given = tuple(cell.get_parameter(n).expand(*x.shape[:-1], H) for n in names)
        given = given if len(given) > 1 else given[0]
        same(cell(x), cell(x, given), rtol=0, atol=0)
        same(gradients(cell, cell(x)), gradients(cell, cell(x, given)), **LOOSE)
    assert "learn_initial_state=True" in repr(cell)
    theirs = fastrnn.convert(copy.deepcopy(cell), to="torch")
    x = torch.randn(B, I)
    same(theirs(x), cell(x), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_pickles_and_states(kind):
    module = make(kind, num_layers=2)
    x = torch.randn(T, B, I)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), torch.load(buffer, weights_only=False)]
    if kind != "custom":
        copies.append(pickle.loads(pickle.dumps(module)))
    other = make(kind, num_layers=2)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(module.state_dict())
    for found in [*copies, other]:
        same(found(x), module(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"Missing key.*initial_h_l0"):
        other.load_state_dict(make(kind, num_layers=2, learn_initial_state=False).state_dict())


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compile_and_export(kind):
    module = make(kind, num_layers=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        x = torch.randn(T, batch, I)
        same(compiled(x), module(x), **LOOSE)
    same(gradients(module, compiled(x)), gradients(module, module(x)), **LOOSE)
    dims = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    program = torch.export.export(module, (x,), dynamic_shapes=(dims,))
    x = torch.randn(T + 3, 7, I)
    same(program.module()(x), module(x), **LOOSE)


def test_fx_trace_and_script():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make("gru")

        def forward(self, x):
            return self.rnn(x)[0]

    model, x = Model(), torch.randn(T, B, I)
    same(torch.fx.symbolic_trace(model)(x), model(x), rtol=0, atol=0)
    traced = torch.jit.trace(model, (x,))
    x = torch.randn(T + 1, B + 2, I)
    same(traced(x), model(x), **LOOSE)
    with pytest.raises(RuntimeError, match="without learn_initial_state"):
        torch.jit.script(model)


def test_formats_and_autocast():
    module = make("lstm")
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = module(x)
        expected, _ = module(x, states_of(module))
    assert y.dtype is torch.bfloat16
    same(y, expected, rtol=0, atol=0)
    low = copy.deepcopy(module).bfloat16()
    assert low.initial_h_l0.dtype is torch.bfloat16
    same(low(x.bfloat16()), low(x.bfloat16(), states_of(low)), rtol=0, atol=0)


def test_stream():
    module = make("lstm", num_layers=2).eval()
    x = torch.randn(T, B, I)
    y, last = module(x)
    for batch in (None, B):
        stream = fastrnn.Stream(module, batch)
        found = torch.stack([stream.step(frame) for frame in x])
        same(found, y, **LOOSE)
        same(stream.state, last, **LOOSE)
        stream.reset([1])
        same(stream.state[0][:, 1], states_of(module)[0][:, 1], rtol=0, atol=0)
        stream.state = None
        same(stream.state, states_of(module), rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(stream))
    same(again.step(x[0]), stream.step(x[0]), rtol=0, atol=0)
    with torch.no_grad():
        module.initial_h_l0.fill_(0.25)
    stream.refresh()
    stream.reset()
    assert torch.equal(stream.state[0][0], torch.full((B, H), 0.25))


def by_steps(module, x, hx, reset, initial, lengths=None):
    """The call as a loop of steps of one layer and direction (T, B, I), rows put together by hand."""
    as_tuple = isinstance(hx, tuple)
    states, start = (hx, initial) if as_tuple else ((hx,), (initial,))
    outputs = []
    for t in range(x.shape[0]):
        again = reset[t].view(1, -1, 1)
        before = tuple(torch.where(again, i, s) for i, s in zip(start, states, strict=True))
        y, new = module.step(x[t], before if as_tuple else before[0])
        new = new if as_tuple else (new,)
        active = torch.full((x.shape[1],), True) if lengths is None else t < torch.tensor(lengths)
        mask = active.view(1, -1, 1)
        states = tuple(torch.where(mask, n, s) for n, s in zip(new, states, strict=True))
        outputs.append(torch.where(active.view(-1, 1), y, torch.zeros_like(y)))
    return torch.stack(outputs), states if as_tuple else states[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 2, 0, 4]])
def test_segments_start_from_initial(kind, backend, learned, lengths):
    """Rows go on from hx, and after a reset start from the learned states, or those of `initial`: with gradients."""
    module = make(kind, learn_initial_state=learned)
    x = torch.randn(T, B, I, requires_grad=True)
    several = kind in ("lstm", "custom")

    def random():
        s = tuple(torch.randn(1, B, H, requires_grad=True) for _ in range(1 + several))
        return s if several else s[0]

    for rate in (0.0, 0.3, 1.0):
        reset = torch.rand(T, B) < rate
        hx, initial = random(), random()
        keywords = {} if learned else {"initial": initial}
        leaves = [x, *(hx if several else (hx,)), *module.parameters()]
        leaves += [] if learned else list(initial if several else (initial,))
        found = []
        for y, last in (
            module(x, hx, reset=reset, lengths=lengths, backend=backend, **keywords),
            by_steps(module, x, hx, reset, states_of(module) if learned else initial, lengths),
        ):
            last = last if several else (last,)
            loss = (y * y).sum() + sum((s * s * (1 + k)).sum() for k, s in enumerate(last))
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            grads = [torch.zeros_like(v) if g is None else g for g, v in zip(grads, leaves, strict=True)]
            found.append((y, *last, *grads))
        same(found[0], found[1], **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru", "custom"])
def test_reverse_and_stacked_segments(kind):
    """In reverse a row begins at its end with hx, and its earlier segments with the learned states."""
    module = make(kind, num_layers=2, bidirectional=True)
    several = kind != "gru"
    x, reset = torch.randn(T, 1, I), torch.tensor([[False], [False], [True], [False], [True]])
    hx = tuple(torch.randn(4, 1, H) for _ in range(1 + several))
    y, last = module(x, hx if several else hx[0], reset=reset)
    learned = states_of(module, 1)
    learned = learned if several else (learned,)
    ahead, back = torch.tensor([True, False, True, False]), torch.tensor([False, True, False, True])
    pieces, ends = [], []
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        # forward goes on from hx in the first segment, backward in the last one
        goes_on = (ahead & (start == 0)) | (back & (stop == T))
        given = tuple(torch.where(goes_on.view(-1, 1, 1), h, s) for h, s in zip(hx, learned, strict=True))
        out, end = module(x[start:stop], given if several else given[0])
        pieces.append(out)
        ends.append(end if several else (end,))
    same(y, torch.cat(pieces), **LOOSE)
    last = last if several else (last,)
    for found, first, final in zip(last, ends[0], ends[-1], strict=True):
        same(found, torch.where(ahead.view(-1, 1, 1), final, first), **LOOSE)


def test_initial_alone_and_unbatched():
    module = fastrnn.GRU(I, H)
    x, h, start = torch.randn(T, I), torch.randn(1, H), torch.randn(1, H)
    same(module(x, initial=start), module(x, start), rtol=0, atol=0)
    reset = torch.tensor([False, False, True, False, False])
    y, last = module(x, h, reset=reset, initial=start)
    first, second = module(x[:2], h)[0], module(x[2:], start)
    same(y, torch.cat((first, second[0])), **LOOSE)
    same(last, second[1], **LOOSE)
    batch_first = fastrnn.GRU(I, H, batch_first=True)
    batch_first.load_state_dict(module.state_dict())
    x, h, start = torch.randn(T, B, I), torch.randn(1, B, H), torch.randn(1, B, H)
    reset = torch.rand(T, B) < 0.4
    y, last = module(x, h, reset=reset, initial=start)
    found = batch_first(x.transpose(0, 1), h, reset=reset.T, initial=start)
    same(found, (y.transpose(0, 1), last), **LOOSE)


def test_compiled_and_vmapped_segments():
    module = make("gru")
    x, h, reset = torch.randn(T, B, I), torch.randn(1, B, H), torch.rand(T, B) < 0.4
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    same(compiled(x, h, reset=reset), module(x, h, reset=reset), **LOOSE)
    xs = torch.randn(3, T, B, I)
    found = torch.func.vmap(lambda v: module(v, h, reset=reset)[0])(xs)
    same(found, torch.stack([module(v, h, reset=reset)[0] for v in xs]), **LOOSE)


def test_token_ids():
    module, table = make("gru"), nn.Embedding(4, I)
    ids = torch.randint(4, (T, B))
    same(module(ids, embedding=table), module(table(ids)), **LOOSE)
    h, reset = torch.randn(1, B, H), torch.rand(T, B) < 0.4
    same(module(ids, h, embedding=table, reset=reset), module(table(ids), h, reset=reset), **LOOSE)
    same(module.step(ids[0], embedding=table), module.step(table(ids[0])), **LOOSE)


def test_errors():
    with pytest.raises(TypeError, match="learn_initial_state should be of type bool, got: int"):
        fastrnn.LSTM(I, H, learn_initial_state=1)
    module = fastrnn.LSTM(I, H)
    x, reset = torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    hx = (torch.zeros(1, B, H), torch.zeros(1, B, H))
    with pytest.raises(ValueError, match=r"initial: expected states shaped like hx, got \(1, 4, 6\)"):
        module(x, hx, reset=reset, initial=hx[0])
    with pytest.raises(ValueError, match=r"initial: .*, got \(\(1, 4, 6\), \(1, 2, 6\)\)"):
        module(x, hx, reset=reset, initial=(hx[0], hx[0][:, :2]))

    @fastrnn.cell(gates="h", parameters="initial_h")
    def clash(x, r, s, p):
        return torch.tanh(x.h + r.h + p.initial_h)

    with pytest.raises(ValueError, match="expected no attribute initial_h_l0 in the module, got one"):
        clash(I, H, learn_initial_state=True)
