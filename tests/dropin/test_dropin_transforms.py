"""Transforms of whole calls: torch.func, tracing, scripting, compiling, exporting."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from dropin_cases import LAYERS, B, H, I, T, cell_pair, gradients, layer_pair, leaves, pair, random_hx, same
from torch import fx, nn
from torch.func import functional_call, grad, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

pytestmark = pytest.mark.filterwarnings(  # of torch about itself
    "ignore:.*torch.jit.*deprecated", "ignore:Attempted to insert a get_attr", "ignore:.*LeafSpec"
)
KINDS = list(LAYERS)
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


class Model(nn.Module):
    """A small model around one recurrent module."""

    def __init__(self, rnn: nn.Module):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(H, 2)

    def forward(self, x):
        y = self.rnn(x)
        while isinstance(y, tuple):
            y = y[0]
        return self.head(y)


def models(kind: str, cell: bool = False, **options):
    theirs, ours = (cell_pair if cell else layer_pair)(kind, **options)
    theirs, ours = Model(theirs), Model(ours)
    ours.head.load_state_dict(theirs.head.state_dict())
    return theirs, ours


def loss_of(model):
    return lambda weights, x: functional_call(model, weights, (x,)).square().sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_functional_call_grad_and_vjp(kind, cell):
    theirs, ours = models(kind, cell)
    x = torch.randn(B, I) if cell else torch.randn(T, B, I)
    weights = {name: w.detach() * 0.5 for name, w in theirs.named_parameters()}
    same(functional_call(ours, weights, (x,)), functional_call(theirs, weights, (x,)), **LOOSE)
    same(ours(x), theirs(x), **LOOSE)
    same(grad(loss_of(ours))(weights, x), grad(loss_of(theirs))(weights, x), **LOOSE)
    found = []
    for model in (theirs, ours):
        y, pull = vjp(lambda w, x, m=model: functional_call(m, w, (x,)), weights, x)
        found.append(pull(torch.ones_like(y)))
    same(found[1], found[0], **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_grad_of_grad_and_jacobian(kind):
    theirs, ours = models(kind)
    x = torch.randn(2, 2, I)
    weights = dict(theirs.named_parameters())
    found, jacobians = [], []
    for model in (theirs, ours):

        def penalty(w, x, m=model):
            return grad(loss_of(m), argnums=1)(w, x).square().sum()

        found.append(grad(penalty)(weights, x))
        jacobians.append(jacrev(lambda x, m=model: functional_call(m, weights, (x,)))(x))
    same(found[1], found[0], **LOOSE)
    same(jacobians[1], jacobians[0], **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_forward_mode(kind, cell):
    theirs, ours = models(kind, cell, dtype=torch.float64)
    theirs.double(), ours.double()
    x = torch.randn(*((B, I) if cell else (T, B, I)), dtype=torch.float64)
    found = [jvp(lambda x, m=model: m(x), (x,), (x.cos(),)) for model in (theirs, ours)]
    same(found[1], found[0])
    y, push = linearize(ours, x)
    same((y, push(x.cos())), found[0])
    weights = {name: w.detach() for name, w in theirs.named_parameters()}
    tangents = {name: w.cos() for name, w in weights.items()}
    found = [jvp(lambda w, m=model: functional_call(m, w, (x,)), (weights,), (tangents,)) for model in (theirs, ours)]
    same(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_vmap_over_inputs_and_per_sample_gradients(kind, cell):
    _, ours = models(kind, cell)
    x = torch.randn(3, B, I) if cell else torch.randn(3, T, B, I)
    weights = {name: w.detach() for name, w in ours.named_parameters()}
    same(vmap(ours)(x), torch.stack([ours(one) for one in x]), **LOOSE)
    together = vmap(grad(loss_of(ours)), (None, 0))(weights, x)
    for index, one in enumerate(x):
        alone = grad(loss_of(ours))(weights, one)
        same({name: g[index] for name, g in together.items()}, alone, rtol=1e-3, atol=1e-4)


def test_accuracy_of_per_sample_gradients():
    """Sums over many steps and rows: at most twice torch.nn's error, in the median over seeds."""
    ratios = []
    for seed in range(9):
        torch.manual_seed(seed)
        theirs, ours = nn.LSTM(2, 3), fastrnn.LSTM(2, 3)
        ours.load_state_dict(theirs.state_dict())
        exact = copy.deepcopy(theirs).double()
        x = 1 + torch.rand(2, 30, 32, 2)
        seeds = torch.linspace(-1, 2, 30 * 32 * 3).view(30, 32, 3)

        def loss(m, weights, x, seeds=seeds):
            return (functional_call(m, weights, (x,))[0] * seeds).sum()

        def weights(m):
            return {n: w.detach() for n, w in m.named_parameters()}

        found = vmap(grad(lambda w, x: loss(ours, w, x)), (None, 0))(weights(ours), x)  # noqa: B023
        for k, one in enumerate(x):
            right = grad(lambda w, x: loss(exact, w, x))(weights(exact), one.double())  # noqa: B023
            usual = grad(lambda w, x: loss(theirs, w, x))(weights(theirs), one)  # noqa: B023
            name = "weight_hh_l0"
            ratios.append((found[name][k] - right[name]).abs().max() / (usual[name] - right[name]).abs().max())
    assert torch.stack(ratios).median() <= 2, ratios


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_ensembles(kind, cell):
    members = [models(kind, cell, seed=seed)[1] for seed in range(3)]
    weights, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(B, I) if cell else torch.randn(T, B, I)
    y = vmap(lambda w, b, x: functional_call(base, (w, b), (x,)), (0, 0, None))(weights, buffers, x)
    same(y, torch.stack([member(x) for member in members]), **LOOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_traces_and_scripts_are_torchs_own_operators(kind, cell):
    theirs, ours = (nn.Sequential(m) for m in (cell_pair if cell else layer_pair)(kind))
    x, other = (torch.randn(n, I) if cell else torch.randn(T, n, I) for n in (B, B + 1))
    for made in (torch.jit.trace(ours, x), torch.jit.script(ours)):
        buffer = io.BytesIO()
        torch.jit.save(made, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        same(loaded(x), theirs(x), **LOOSE)
        if isinstance(made, torch.jit.ScriptModule) and not isinstance(made, torch.jit.TopLevelTracedModule):
            same(loaded(other), theirs(other), **LOOSE)
        assert "fastrnn::" not in str(loaded.inlined_graph)
    same(ours(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", [False, True])
def test_fx_keeps_the_module_whole(kind, cell):
    theirs, ours = models(kind, cell)

    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.rnn = inner.rnn

        def forward(self, x, hx):
            y = self.rnn(x, hx)
            return y, self.rnn(x * 2, hx=hx)

    graphs = [fx.symbolic_trace(Outer(m)) for m in (theirs, ours)]
    calls = [[n.target for n in g.graph.nodes if n.op == "call_module"] for g in graphs]
    assert calls[0] == calls[1] == ["rnn", "rnn"]
    x, hx = torch.randn(B, I) if cell else torch.randn(T, B, I), random_hx(theirs.rnn)
    same(graphs[1](x, hx), graphs[0](x, hx), **LOOSE)
    assert type(graphs[1].rnn) is type(ours.rnn)


def test_fx_with_our_keywords():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.LSTM(I, H)

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths)[0]

    model = Outer()
    traced = fx.symbolic_trace(model)
    x, lengths = torch.randn(T, B, I), torch.tensor([5, 1, 2, 3])
    same(traced(x, lengths), model(x, lengths), rtol=0, atol=0)
    (node,) = [n for n in traced.graph.nodes if n.op == "call_module"]
    assert list(node.kwargs) == ["lengths"]


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(kind, backend):
    theirs, ours = models(kind)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend=backend, dynamic=True)
    for steps, batch in ((T, B), (3, 2), (7, 5)):
        x = torch.randn(steps, batch, I)
        same(compiled(x), theirs(x), **LOOSE)
        fresh = [x.clone().requires_grad_() for _ in range(2)]
        same(gradients(ours, compiled(fresh[0]), fresh[0]), gradients(theirs, theirs(fresh[1]), fresh[1]), **LOOSE)
    with torch.no_grad():
        ours.rnn.weight_hh_l0.mul_(0.5)
        theirs.rnn.weight_hh_l0.mul_(0.5)
    same(compiled(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compile_with_our_keywords(kind):
    _, ours = layer_pair(kind, num_layers=2, bidirectional=True, batch_first=True)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(B, T, I), torch.tensor([2, 5, 1, 4])
    reset = torch.rand(B, T) < 0.3
    same(compiled(x, lengths=lengths, reset=reset), ours(x, lengths=lengths, reset=reset), **LOOSE)
    same(compiled(x, random_hx(ours), lengths=lengths), ours(x, random_hx(ours), lengths=lengths), **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("cell", [False, True])
def test_compile_under_autocast(kind, cell):
    _, ours = (cell_pair if cell else layer_pair)(kind)

    def call(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ours(x)

    x = torch.randn(B, I) if cell else torch.randn(T, B, I)
    torch._dynamo.reset()
    same(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("cell", [False, True])
def test_compiled_loop_over_steps(cell):
    rnn = fastrnn.GRUCell(I, H) if cell else fastrnn.GRU(I, H)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            hx = torch.zeros(B, H) if cell else None
            outputs = []
            for t in range(T):
                if cell:
                    y = hx = self.rnn(x[t], hx)
                else:
                    y, hx = self.rnn.step(x[t], hx)
                outputs.append(y)
            return torch.stack(outputs)

    loop, x = Loop(), torch.randn(T, B, I)
    torch._dynamo.reset()
    same(torch.compile(loop, fullgraph=True, backend="aot_eager")(x), loop(x), **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_any_length_and_batch(kind, strict):
    theirs, ours = models(kind, batch_first=True, num_layers=2, bidirectional=False)
    x = torch.randn(B, T, I)
    dims = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("steps", min=2)}
    program = torch.export.export(ours, (x,), dynamic_shapes=(dims,), strict=strict)
    assert "torch.ops.fastrnn." in program.graph_module.print_readable(print_output=False)
    for shape in ((B, T), (2, 9), (7, 3)):
        x = torch.randn(*shape, I)
        same(program.module()(x), theirs(x), **LOOSE)
    program = program.run_decompositions()
    same(program.module()(x), theirs(x), **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_make_fx_and_fake_tensors(kind):
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    theirs, ours = models(kind)
    x = torch.randn(T, B, I)
    same(make_fx(ours)(x)(x), theirs(x), **LOOSE)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = ours(mode.from_tensor(x))
    assert y.shape == (T, B, 2)


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_per_sample_gradients_by_expanded_weights(kind):
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    theirs, ours = layer_pair(kind, batch_first=True)
    x = torch.randn(B, T, I)
    for module in (theirs, ours):
        call_for_per_sample_grads(module)(x)[0].square().sum().backward()
    same([p.grad_sample for p in ours.parameters()], [p.grad_sample for p in theirs.parameters()], **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_modules_inside_other_wrappers(kind):
    theirs, ours = pair("LSTM" if kind == "lstm" else "GRU", I, H)
    x = torch.randn(T, B, I)
    swa = torch.optim.swa_utils.AveragedModel(ours)
    same(swa(x), theirs(x), **LOOSE)
    same(nn.DataParallel(ours)(x), theirs(x), **LOOSE)
    assert sum(isinstance(m, nn.RNNBase) for m in nn.Sequential(ours, nn.ModuleList([ours])).modules()) == 1
    packed = pack_padded_sequence(x, [5, 4, 3, 1])
    same(pad_packed_sequence(swa(packed)[0]), pad_packed_sequence(theirs(packed)[0]), **LOOSE)
    assert leaves(ours(packed))[0].shape == (13, H)
