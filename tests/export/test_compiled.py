"""`torch.compile(fullgraph=True)` where sizes are values: packed input. And backward passes by compiled autograd."""

from __future__ import annotations

import pytest
import torch
from dropin_cases import same
from torch import nn
from torch._dynamo import compiled_autograd
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import gallery
from fastrnn.functional import LayerWeights, sequence

T, B, I, H = 6, 4, 3, 5  # noqa: E741
UNSORTED = torch.tensor([3, 6, 1, 3])
MODULES = {
    "lstm": lambda **options: fastrnn.LSTM(I, H, **options),
    "gru": lambda **options: fastrnn.GRU(I, H, **options),
    "rnn": lambda **options: fastrnn.RNN(I, H, **options),
    "custom": lambda **options: gallery.sru(I, H, **options),
}


def tensors(found) -> list[torch.Tensor]:
    if isinstance(found, PackedSequence):
        return [found.data]
    return [found] if isinstance(found, torch.Tensor) else [t for part in found for t in tensors(part)]


def compare(call, module: nn.Module, dynamic: bool | None = None) -> None:
    """Outputs and gradients of `call(module)`, compiled and not."""
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    parameters, results = list(module.parameters()), []
    for run in (module, compiled):
        outputs = tensors(call(run))
        grads = torch.autograd.grad(sum(t.square().sum() for t in outputs), parameters)
        results.append([*outputs, *grads])
    with torch.no_grad():
        same(tensors(call(compiled)), results[0][: len(results[0]) - len(parameters)], rtol=1e-5, atol=1e-6)
    same(results[1], results[0], rtol=1e-5, atol=1e-6)


def packed(sort: bool, x: torch.Tensor | None = None) -> PackedSequence:
    lengths = UNSORTED.sort(descending=True)[0] if sort else UNSORTED
    return pack_padded_sequence(torch.randn(T, B, I) if x is None else x, lengths, enforce_sorted=sort)


def initial(module: nn.Module, batch: int = B):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = [getattr(module, "proj_size", 0) or H]
    widths += [H] * (isinstance(module, nn.LSTM) or (hasattr(module, "cell") and len(module.cell.states) > 1))
    states = tuple(torch.randn(rows, batch, width) for width in widths)
    return states if len(states) > 1 else states[0]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("kind", MODULES)
def test_packed_with_initial_states(kind, dynamic):
    more = {"proj_size": 2} if kind == "lstm" else {}
    for sort, options in ((True, {}), (False, {"bidirectional": True, "num_layers": 2, "batch_first": True, **more})):
        module, rows = MODULES[kind](**options), packed(sort)
        hx = initial(module)
        compare(lambda run, rows=rows, hx=hx: run(rows, hx), module, dynamic)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "custom"])
def test_packed_with_learned_initial_states(kind, sort):
    rows = packed(sort)
    compare(lambda run: run(rows), MODULES[kind](learn_initial_state=True, bidirectional=True))


def test_packed_ids():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(7, I), fastrnn.LSTM(I, H)

        def forward(self, ids, hx):
            return self.rnn(ids, hx, embedding=self.embedding)

    model, ids = Model(), packed(False, torch.randint(0, 7, (T, B)))
    hx = initial(model.rnn)
    compare(lambda run: run(ids, hx), model, True)


@pytest.mark.parametrize("reverse", [False, True])
def test_functional_with_batch_sizes(reverse):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.LSTM(I, H)

        def forward(self, x, batch_sizes, states):
            m = self.rnn
            weights = LayerWeights(m.weight_ih_l0, m.weight_hh_l0, m.bias_ih_l0, m.bias_hh_l0)
            return sequence("lstm", x, weights, states, batch_sizes=batch_sizes, reverse=reverse)

    rows = packed(True)
    for states in ((torch.randn(B, H), torch.randn(B, H)), None):
        compare(lambda run, states=states: run(rows.data, rows.batch_sizes, states), Model(), True)


def test_packed_with_states_of_another_batch():
    """The operator compares the sizes that the compiler cannot compare."""
    for kind in ("gru", "custom"):
        module, rows = MODULES[kind](), packed(True)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        with pytest.raises(RuntimeError, match=r"states: expected shape \[4, 5\]"), torch.no_grad():
            compiled(rows, initial(module, B + 1))


X = torch.randn(T, B, I)
RESET = torch.arange(T * B).view(T, B) % 3 == 1
BACKWARD = {
    "stack": ("lstm", {"bidirectional": True, "num_layers": 2, "batch_first": True}, lambda m: m(X)),
    "projection": ("lstm", {"proj_size": 2}, lambda m: m(X, initial(m), lengths=UNSORTED)),
    "unbatched": ("rnn", {}, lambda m: m(X[:, 0])),
    "step": ("gru", {}, lambda m: m.step(X[0])),
    "packed": ("gru", {"bidirectional": True}, lambda m: m(packed(False, X))),
    "changed in place": ("gru", {}, lambda m: m(X)[0].mul_(2)),
    "custom": ("custom", {}, lambda m: m(X)),
    "clipped": ("lstm", {}, lambda m: m(X, clip_state_gradient=0.01)),
    "recompute": ("lstm", {}, lambda m: m(X, recompute=True, reset=RESET, lengths=UNSORTED)),
    "recompute packed": ("gru", {}, lambda m: m(packed(True, X), recompute=True)),
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_pass_by_compiled_autograd(name):
    kind, options, call = BACKWARD[name]
    module, graphs = MODULES[kind](**options), []

    def loss():
        torch.manual_seed(0)
        return sum(t.square().sum() for t in tensors(call(module)))

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    expected = torch.autograd.grad(loss(), list(module.parameters()))
    inner = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)
    with compiled_autograd._enable(torch.compile(backend=inner, fullgraph=True)):
        loss().backward()
    same([p.grad for p in module.parameters()], list(expected), rtol=1e-5, atol=1e-6)
    operators = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("fastrnn.layer_backward" in target for target in operators)
    assert any("fastrnn.sequence_forward" in target for target in operators) == (
        name == "changed in place" or "recompute" in name
    )


def test_graph_of_a_backward_pass_is_used_again():
    """One graph for all calls of a shape; another one where the output was changed in place."""
    module, count = fastrnn.GRU(I, H), []

    def compiler(graph, inputs):
        count.append(graph)
        return graph.forward

    with compiled_autograd._enable(torch.compile(backend=compiler, fullgraph=True)):
        for factor in (None, None, 3.0, 3.0):
            module.zero_grad()
            y = module(X)[0]
            if factor:
                y = y.mul_(factor)
            y.sum().backward()
            found = [p.grad.clone() for p in module.parameters()]
            with compiled_autograd._disable():
                expected = torch.autograd.grad(module(X)[0].sum() * (factor or 1.0), list(module.parameters()))
            same(found, list(expected), rtol=1e-5, atol=1e-6)
    assert len(count) == 2
