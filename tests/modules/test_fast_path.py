"""The fast path to the kernels (csrc/python/fast_path.cpp): only ordinary calls take it, with bitwise equal results."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from dropin_cases import CELLS, LAYERS, cell_pair, gradients, layer_pair, leaves, random_hx, same
from torch import nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import _C

T, B, I, H = 5, 4, 3, 6  # noqa: E741 - letters as in the equations
NETWORKS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "layers": {"num_layers": 3},
    "directions": {"bidirectional": True},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 2},
    "projected layers": {"proj_size": 2, "num_layers": 2, "bidirectional": True},
}
KINDS = [(kind, options) for kind in LAYERS for options in NETWORKS if "proj" not in options or kind == "lstm"]


@contextlib.contextmanager
def the_usual_way():
    _C.set_fast_path(False)
    try:
        yield
    finally:
        _C.set_fast_path(True)


def make(kind: str, size: int = I, hidden: int = H, **options):
    return layer_pair(kind, size, hidden, **options)[1]


def taken(module: nn.Module, x, hx=None, stepping: bool = False) -> bool:
    return _C.fast_path_layers(module, x, hx, stepping) is not None


def bits(result) -> list[torch.Tensor]:
    return [leaf.detach().clone() for leaf in leaves(result)]


def same_bits(module: nn.Module, call, *inputs: torch.Tensor) -> None:
    """`call(module, *inputs)`, its results and gradients, are those of the usual way."""
    found = []
    for way in (contextlib.nullcontext, the_usual_way):
        with way():
            fresh = [x.detach().clone().requires_grad_() for x in inputs]
            result = call(module, *fresh)
            with torch.no_grad():
                without = call(module, *fresh)
            found.append((bits(result), bits(without), gradients(module, result, *fresh)))
    for mine, usual in zip(found[0][:2], found[1][:2], strict=True):
        assert [t.shape for t in mine] == [t.shape for t in usual]
        assert [t.stride() for t in mine] == [t.stride() for t in usual]
        assert all(map(torch.equal, mine, usual))
    for name, usual in found[1][2].items():
        assert (found[0][2][name] is None) == (usual is None), name
        assert usual is None or torch.equal(found[0][2][name], usual), name


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("batch", [None, 1, B])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_layers_have_the_bits_of_the_usual_way(kind, options, batch, steps):
    module = make(kind, **NETWORKS[options])
    x = torch.randn((steps, I) if batch is None else (batch, steps, I) if module.batch_first else (steps, batch, I))
    hx = random_hx(module, batch)
    states = hx if isinstance(hx, tuple) else (hx,)
    assert taken(module, x)
    assert taken(module, x, hx)
    same_bits(module, lambda m, x: m(x), x)
    same_bits(module, lambda m, x, *s: m(x, s if len(s) > 1 else s[0]), x, *states)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_other_formats(kind, dtype):
    module, x = make(kind, 20, 33, num_layers=2).to(dtype), torch.randn(2, 3, 20, dtype=dtype)
    assert taken(module, x, random_hx(module, 3, dtype=dtype))
    same_bits(module, lambda m, x: m(x), x)


@pytest.mark.parametrize("batch", [None, B])
@pytest.mark.parametrize("kind", LAYERS)
def test_steps_have_the_bits_of_the_usual_way(kind, batch):
    for options in ({}, {"num_layers": 2, "batch_first": True}):
        module = make(kind, **options)
        x, hx = torch.randn((I,) if batch is None else (batch, I)), random_hx(module, batch)
        states = hx if isinstance(hx, tuple) else (hx,)
        assert taken(module, x, hx, True)
        same_bits(module, lambda m, x: m.step(x), x)
        same_bits(module, lambda m, x, *s: m.step(x, s if len(s) > 1 else s[0]), x, *states)


@pytest.mark.parametrize("batch", [None, 1, B])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_have_the_bits_of_the_usual_way(kind, batch):
    cell = cell_pair(kind)[1]
    x, hx = torch.randn((I,) if batch is None else (batch, I)), random_hx(cell, batch)
    states = hx if isinstance(hx, tuple) else (hx,)
    assert _C.fast_path_cell(cell, kind, x, None) is not None
    assert _C.fast_path_cell(cell, kind, x, states) is not None
    same_bits(cell, lambda m, x: m(x), x)
    same_bits(cell, lambda m, x, *s: m(x, s if len(s) > 1 else s[0]), x, *states)


@pytest.mark.parametrize("kind", LAYERS)
def test_strides_and_offsets(kind):
    module = make(kind)
    wide = torch.randn(T, B, 2 * I)
    for x in (
        wide[..., ::2],
        wide[..., I:],
        torch.randn(I, B, T).permute(2, 1, 0),
        torch.randn(T, 1, I).expand(T, B, I),
    ):
        assert taken(module, x)
        same_bits(module, lambda m, x: m(x), x)
        with the_usual_way():
            usual = module(x)
        same(module(x), usual, rtol=0, atol=0)
    with torch.no_grad():
        module.weight_hh_l0.set_(module.weight_hh_l0.t().contiguous().t())
    same_bits(module, lambda m, x: m(x), wide[..., I:])


class Foreign(torch.Tensor):
    pass


class Sees(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_modes_transforms_and_tracers_go_the_usual_way():
    module, x = make("lstm"), torch.randn(T, B, I)
    expected = module(x)[0]
    for mode in (
        torch.autocast("cpu", dtype=torch.bfloat16),
        Sees(),
        Function(),
        torch.autograd.forward_ad.dual_level(),
    ):
        with mode:
            assert not taken(module, x)
    assert taken(module, x)
    with Sees() as mode:
        module(x)
    assert mode.seen > 0
    answers = []

    def asks(x):
        answers.append(taken(module, x))
        return module(x)[0]

    same(torch.vmap(asks)(torch.stack((x, x)))[1], expected)
    torch.func.grad(lambda x: asks(x).sum())(x)
    torch.func.grad(lambda unused: asks(x).sum() * unused.sum())(x)  # none of the layer's own tensors is wrapped
    torch.func.jvp(asks, (x,), (x,))

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            answers.append(taken(self.inner, x))
            return self.inner(x)[0]

    same(torch.jit.trace(Asks(), (x,), check_trace=False)(x), expected)
    assert answers == [False] * len(answers)
    assert len(answers) >= 5
    assert taken(module, x)


def test_compiled_and_symbolically_traced():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make("gru")

        def forward(self, x):
            return self.inner(x)[0] * 2

    outer, x = Outer(), torch.randn(T, B, I)
    compiled = torch.compile(outer, backend="eager", fullgraph=True)
    same(compiled(x), outer(x))
    traced = torch.fx.symbolic_trace(outer)
    assert any(node.op == "call_module" for node in traced.graph.nodes)
    same(traced(x), outer(x))


def test_doubtful_arguments_are_declined():
    module, x = make("lstm"), torch.randn(T, B, I)
    h, c = random_hx(module)
    assert taken(module, x, (h, c))
    assert taken(module, x, [h, c])
    odd_inputs = (x.as_subclass(Foreign), x.double(), x.to("meta"), x.to_sparse(), x[0, 0], x[..., :2], x[:0], x[:, :0])
    for odd in (*odd_inputs, torch._neg_view(x), x.to(torch.complex64), None, 3):
        assert not taken(module, odd)
    assert not taken(module, x, (h, None))
    for states in (
        h,
        (h,),
        (h, c, c),
        (h[0], c[0]),
        (h[:, :1], c),
        (h, c.double()),
        (h.as_subclass(Foreign), c),
        1,
        "hc",
    ):
        assert not taken(module, x, states)
    gru = make("gru")
    assert not taken(gru, x, (h,))
    assert not taken(gru, x, h[:, :2])
    assert not taken(nn.LSTM(I, H), x)
    assert not taken(x, x)
    with pytest.raises(RuntimeError, match="input"):
        module(x[..., :2])
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module(x, (h[:, :1], c))
    same(module(torch._neg_view(x)), module(-x))


def test_a_subclass_goes_the_usual_way():
    class Own(fastrnn.LSTM):
        def __getattr__(self, name):
            return super().__getattr__(name)

    torch.manual_seed(0)
    own, x = Own(I, H), torch.randn(T, B, I)
    assert not taken(own, x)
    same(own(x), own._torch_class.forward(own, x))


def test_weights_are_read_at_each_call():
    module, x = make("lstm"), torch.randn(T, B, I)

    def right() -> bool:
        with the_usual_way():
            usual = module(x)
        return all(map(torch.equal, bits(module(x)), bits(usual)))

    before = module(x)[0]
    module.weight_ih_l0.data.mul_(2)
    assert right()
    assert not torch.equal(module(x)[0], before)
    module.weight_hh_l0.data = torch.randn(4 * H, H)
    assert right()
    module.bias_hh_l0 = nn.Parameter(torch.randn(4 * H))
    assert right()
    module.load_state_dict(make("lstm", seed=3).state_dict())
    assert right()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    module(x)[0].sum().backward()
    before = module(x)[0]
    optimiser.step()
    assert right()
    assert not torch.equal(module(x)[0], before)
    assert taken(module, x)
    replaced = {"weight_ih_l0": torch.zeros(4 * H, I)}
    expected = torch.func.functional_call(module, replaced, (x,))[0]
    with the_usual_way():
        same(torch.func.functional_call(module, replaced, (x,))[0], expected, rtol=0, atol=0)
    assert not torch.equal(expected, module(x)[0])


@pytest.mark.parametrize("how", ["weight_norm", "parametrization", "prune", "attribute", "wrong size"])
def test_weights_that_are_no_parameters(how):
    module, x = make("lstm"), torch.randn(T, B, I)
    if how == "weight_norm":
        torch.nn.utils.weight_norm(module, "weight_hh_l0")
    elif how == "parametrization":
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    elif how == "prune":
        prune.random_unstructured(module, "weight_hh_l0", 0.5)
    elif how == "attribute":
        del module.weight_hh_l0
        module.weight_hh_l0 = torch.zeros(4 * H, H)
    else:
        module.weight_ih_l0 = nn.Parameter(torch.zeros(4 * H, I + 1))
    assert not taken(module, x)
    if how == "wrong size":
        with pytest.raises(RuntimeError):
            module(x)
    else:
        same(module(x), module._torch_class.forward(module, x), rtol=1e-4, atol=1e-5)


def test_keywords_dropout_and_packed_input():
    module, x = make("gru", num_layers=2, dropout=0.5), torch.randn(T, B, I)
    assert not taken(module, x)
    torch.manual_seed(1)
    mine = module(x)[0]
    with the_usual_way():
        torch.manual_seed(1)
        assert torch.equal(module(x)[0], mine)
    module.eval()
    assert taken(module, x)
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 4, 1])
    assert not taken(module, packed)
    y = module(x, lengths=[5, 4, 4, 1])[0]
    assert y[1:, 3].abs().sum() == 0
    for backend in ("torch", "reference", "fused"):
        same(module(x, backend=backend), module(x), rtol=1e-4, atol=1e-5)
    module.backend = "reference"
    same(module(x), module(x, backend="fused"), rtol=1e-4, atol=1e-5)
    assert module.step(x[0])[0].shape == (B, H)


def test_results_share_no_memory():
    module, x = make("lstm"), torch.randn(1, B, I)
    y, (h, c) = module(x)
    assert len({t.untyped_storage().data_ptr() for t in (y, h, c)}) == 3
    fence = 64  # behind each output, while the tests look for stray writes
    assert all(t.untyped_storage().nbytes() <= t.numel() * 4 + fence for t in (y, h, c))
    again = copy.deepcopy(module)(x)
    same(again, (y, (h, c)), rtol=0, atol=0)
