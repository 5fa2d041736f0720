"""The operators for GPUs, torch's side of them (csrc/ops/cuda), over the emulator: no GPU is needed.

Checks, how rows lie, memory, input products and weight gradients, the choice of a driver and what it falls back to.
"""

from __future__ import annotations

import cuda_ops
import emulated
import pytest
import torch
from bad_calls import BAD
from dropin_cases import gradients, layer_pair, same
from problems import LAYOUTS, Problem, assert_same, error
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn import _ops
from fastrnn._call import Call
from fastrnn.functional import LayerWeights, lstm, sequence

ROWS = [(1, 1, 1, 1), (1, 3, 2, 5), (5, 4, 3, 7), (4, 17, 5, 12)]  # T, B, I, H
DRIVERS = ("stepwise", "grid", "cluster")
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def ops():
    try:
        cuda_ops.load()
    except (SystemExit, emulated.BuildError) as problem:
        if isinstance(problem, SystemExit):
            pytest.skip(str(problem))
        raise
    with cuda_ops.instead():
        yield torch.ops.fastrnn_emulated


def compare(problem: Problem, exact: Problem, tolerance: float) -> None:
    assert_same(problem.run("fused"), exact.run("reference"), tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", cuda_ops.CELLS)
def test_stepwise_equals_the_reference(ops, cell, layout, reverse):
    ops.set_driver("stepwise")
    for T, B, inputs, H in ROWS:
        for P in {0, 3 if cell == "lstm" and H > 3 else 0, H if cell == "lstm" else 0}:
            for with_all in (True, False):
                p = Problem(cell, T, B, inputs, H, P, layout, reverse, bias=with_all, initial=with_all)
                compare(p, p, 1e-12)


def test_a_projection_as_wide_as_h(ops):
    """Sizes alone do not tell it from none."""
    p = Problem("lstm", 5, 3, 2, 6)
    weights = p.weights._replace(w_hr=torch.randn(6, 6, dtype=torch.float64).requires_grad_())
    found = []
    for backend in ("fused", "reference"):
        y, (h, c) = sequence("lstm", p.x, weights, p.states, backend=backend)
        leaves = [p.x, weights.w_ih, weights.w_hh, weights.w_hr, *p.states]
        found.append([y, h, c, *torch.autograd.grad(y.sin().sum() + h.sum() + c.cos().sum(), leaves)])
    for a, b in zip(*found, strict=True):
        assert error(a, b) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", cuda_ops.CELLS)
def test_every_driver_and_format(ops, cell, layout, driver, dtype):
    ops.set_driver(driver)
    reverse = layout in ("packed", "lengths+reset")
    for T, B, inputs, H in [(1, 3, 2, 5), (4, 5, 3, 12)]:
        exact = Problem(cell, T, B, inputs, H, 0, layout, reverse)
        ops.set_seed(T)
        before = cuda_ops.runs()[driver]
        compare(Problem(cell, T, B, inputs, H, 0, layout, reverse, dtype=dtype), exact, ROUNDING[dtype])
        assert cuda_ops.runs()[driver] == before + 2  # forward and backward


def test_tf32_where_torch_allows_it(ops):
    exact, p = Problem("lstm", 5, 4, 3, 12), Problem("lstm", 5, 4, 3, 12, dtype=torch.float32)
    ops.set_driver("grid")
    wanted = exact.run("reference")["y"]
    assert error(p.run()["y"], wanted) < 1e-6
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert 1e-6 < error(p.run()["y"], wanted) < 1e-3
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("driver", DRIVERS)
def test_same_bits_in_every_run(ops, driver):
    ops.set_driver(driver)
    found = []
    for seed in (1, 2):
        ops.set_seed(seed)
        found.append(Problem("lstm", 6, 5, 3, 20, layout="lengths+reset", dtype=torch.float32).run())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("cell", cuda_ops.CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_may_hold_anything(cell, reverse):
    p = Problem(cell, 6, 5, 3, 8, layout="lengths", reverse=reverse)
    clean = p.run()
    with torch.no_grad():
        for b, n in enumerate(p.arguments["lengths"].tolist()):
            p.x[n:, b] = float("nan")
    assert_same(p.run(), clean, 1e-15)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", cuda_ops.CELLS)
def test_input_product_given(cell, layout):
    """Without w_ih; the caller's tensor, which could serve as the memory of the gates, stays what it was."""
    for bias in (True, False):
        p = Problem(cell, 5, 4, 1, 6, layout=layout, bias=bias)
        wx = torch.randn(*p.x.shape[:-1], p.weights.w_hh.shape[0], dtype=torch.float64)
        for training in (True, False):
            given = wx.clone().requires_grad_(training)
            found = []
            for backend in ("fused", "reference"):
                with torch.set_grad_enabled(training):
                    weights = p.weights._replace(w_ih=None)
                    y, _ = sequence(cell, given, weights, p.states, backend=backend, **p.arguments)
                found.append([y, *(torch.autograd.grad(y.sin().sum(), [given]) if training else ())])
            assert torch.equal(given, wx)
            for a, b in zip(*found, strict=True):
                assert error(a, b) < 1e-13


def test_strides_of_all_kinds():
    p = Problem("lstm", 6, 5, 4, 7)
    exact = p.run("reference")
    weights = LayerWeights(*(w.detach().t().contiguous().t().requires_grad_() for w in p.weights[:2]), *p.weights[2:])
    x = p.x.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    states = tuple(s.detach().t().contiguous().t().requires_grad_() for s in p.states)
    y, finals = sequence("lstm", x, weights, states)
    assert error(y, exact["y"]) < 1e-14
    seeds = [s.transpose(0, 1).contiguous().transpose(0, 1) for s in p.seeds((y, *finals))]
    found = torch.autograd.grad((y, *finals), (x, weights.w_ih, weights.w_hh, *states), seeds)
    for name, grad in zip(("dx", "dw_ih", "dw_hh", "dh0", "dc0"), found, strict=True):
        assert error(grad, exact[name]) < 1e-13, name


@pytest.mark.parametrize("name", BAD)
def test_the_same_errors_as_on_the_cpu(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_empty_batch():
    w = LayerWeights(*(t.requires_grad_() for t in (torch.randn(8, 3), torch.randn(8, 2), torch.randn(8))))
    y, (h, c) = lstm(torch.randn(4, 0, 3), w)
    assert y.shape == (4, 0, 2)
    assert h.shape == c.shape == (0, 2)
    y.sum().backward()
    assert all(t.grad.abs().sum() == 0 for t in w[:3])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", cuda_ops.CELLS)
def test_shapes_are_those_that_the_compiler_is_told(ops, cell, layout):
    for P in {0, 3 if cell == "lstm" else 0}:
        for training in (True, False):
            p = Problem(cell, 5, 4, 3, 6, P, layout, dtype=torch.bfloat16)
            arguments = (p.arguments.get("batch_sizes"), p.arguments.get("lengths"), p.arguments.get("reset"))
            states = list(p.states)
            restart = [s + 1 for s in states] if arguments[2] is not None else []
            given = (cell, p.x, *p.weights, states, *arguments, False, training, restart)
            out = ops.sequence_forward(*given)
            check_shapes(out, torch.ops.fastrnn.sequence_forward, *given)
            if not training:
                continue
            y, finals, saved = out
            for wanted in ([True] * 11, [False] * 11, [True, False] * 5 + [True]):
                given = (cell, y, finals, p.x, p.weights.w_ih, p.weights.w_hh, p.weights.w_hr, states, y, saved)
                given = (*given, *arguments, False, wanted, restart, 0.0)
                check_shapes(ops.layer_backward(*given), torch.ops.fastrnn.layer_backward, *given)


def check_shapes(found, operator, *arguments) -> None:
    def leaves(value):
        return [t for v in value for t in leaves(v)] if isinstance(value, (tuple, list)) else [value]

    with FakeTensorMode(allow_non_fake_inputs=True):
        wanted = operator(*arguments)
    found, wanted = leaves(found), leaves(wanted)
    assert [(tuple(t.shape), t.dtype) for t in found] == [(tuple(t.shape), t.dtype) for t in wanted]
    assert all(t.is_contiguous() for t in found)
    assert len({t.data_ptr() for t in found if t.numel()}) == len([t for t in found if t.numel()])


@pytest.mark.parametrize("driver", ["grid", "cluster"])
def test_a_driver_that_cannot_be_had(ops, driver):
    p = Problem("lstm", 3, 2, 3, 8)  # float64
    ops.set_driver(driver)
    with pytest.raises(RuntimeError, match=f'"{driver}" can run, as it was asked for.*no persistent kernel'):
        p.run()
    p = Problem("lstm", 3, 2, 3, 8, 4, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="a projection needs a second product"):
        p.run()
    ops.limit_machine(1, 4096, 1)
    p = Problem("lstm", 3, 2, 3, 64, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="do not fit into shared memory"):
        p.run()
    ops.set_driver("auto")
    before = cuda_ops.runs()["stepwise"]
    compare(p, Problem("lstm", 3, 2, 3, 64), 2e-6)
    assert cuda_ops.runs()["stepwise"] == before + 2
    with pytest.raises(ValueError, match="driver: expected auto, stepwise, grid or cluster, got fast"):
        ops.set_driver("fast")


def test_slices_that_are_asked_for(ops):
    """The same numbers however a call is cut; a way to cut that memory has no room for raises."""
    p, exact = (Problem("lstm", 4, 9, 5, 40, dtype=dtype) for dtype in (torch.float32, torch.float64))
    try:
        for driver, slices in (("grid", (5, 1)), ("grid", (1, 3)), ("cluster", (4, 2))):
            ops.set_driver(driver)
            ops.set_slices(*slices)
            compare(p, exact, ROUNDING[torch.float32])
        ops.limit_machine(0, 24 * 1024, 0)
        ops.set_driver("grid")
        ops.set_slices(5, 1)
        compare(p, exact, ROUNDING[torch.float32])
        ops.set_slices(1, 1)
        with pytest.raises(RuntimeError, match="do not fit into shared memory"):
            p.run("fused")
        with pytest.raises(ValueError, match="slices: expected no negative number, got -1 and 1"):
            ops.set_slices(-1, 1)
    finally:
        ops.set_slices(0, 0)
        ops.limit_machine(0, 0, 0)


def test_a_refused_launch_is_left_to_the_stepwise_driver(ops):
    p = Problem("gru", 5, 3, 4, 16, layout="lengths", dtype=torch.float32)
    exact = Problem("gru", 5, 3, 4, 16, layout="lengths")
    before = cuda_ops.runs()
    compare(p, exact, 2e-6)
    after = cuda_ops.runs()
    assert after["stepwise"] == before["stepwise"]  # small enough for the others
    ops.set_refusing(True)
    compare(p, exact, 2e-6)
    assert cuda_ops.runs()["stepwise"] == after["stepwise"] + 2
    ops.set_driver("grid")
    with pytest.raises(RuntimeError, match=r'"grid" can run.*too many blocks in cooperative launch'):
        p.run()


KEYWORDS = [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}]


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("options", KEYWORDS)
def test_modules(kind, options):
    """Their way with tensors on a GPU: through the operators, without what only the CPU has."""
    theirs, ours = layer_pair(kind, dtype=torch.float64, **options)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    x = x if options.get("batch_first") else x.transpose(0, 1)
    before = cuda_ops.runs()["stepwise"]
    expected, actual = theirs(x), ours(x)
    assert cuda_ops.runs()["stepwise"] > before
    same(actual, expected)
    same(gradients(ours, actual), gradients(theirs, expected))
    lengths = [2, 5, 0, 4]
    actual, expected = ours(x, lengths=lengths), ours(x, lengths=lengths, backend="reference")
    same(actual, expected)
    same(gradients(ours, actual), gradients(ours, expected))
    same(ours(x, lengths=lengths, recompute=2), expected)


def test_gradients_of_any_order():
    p = Problem("lstm", 3, 2, 2, 3)
    inputs = (p.x, *p.weights[:4], *p.states)

    def run(x, w_ih, w_hh, b_ih, b_hh, h, c):
        y, _ = sequence("lstm", x, LayerWeights(w_ih, w_hh, b_ih, b_hh), (h, c))
        return y

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_vmap_and_torch_func():
    net = fastrnn.GRU(3, 4, dtype=torch.float64)
    parameters = dict(net.named_parameters())
    xs = torch.randn(5, 4, 2, 3, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x,))[0].sin().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for k, x in enumerate(xs):
        wanted = torch.func.grad(loss)(parameters, x)
        for name, grad in wanted.items():
            assert error(found[name][k], grad) < 1e-13, name


def test_what_is_kept_is_a_function_of_the_inputs(ops):
    p = Problem("gru", 5, 4, 3, 6, layout="lengths")
    kept = []
    for on in (True, False):
        ops.set_poison(on)
        lengths = p.arguments["lengths"]
        kept.append(_ops.forward(Call("gru", p.x, p.weights, p.states, lengths=lengths), True))
    for a, b in zip(kept[0][2], kept[1][2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_a_bound_for_the_gradient_of_the_state(ops, driver, kind):
    dtype = torch.float64 if driver == "stepwise" else torch.float32
    for options in ({}, {"proj_size": 3}) if kind == "lstm" and driver == "stepwise" else ({},):
        net = layer_pair(kind, 3, 8, **options)[1].to(dtype)
        x, reset = torch.randn(5, 4, 3, dtype=dtype), torch.rand(5, 4) < 0.2
        for layout in ({}, {"reset": reset, "lengths": [5, 0, 3, 4]}):
            ops.set_driver(driver)
            before = cuda_ops.runs()[driver]
            found = gradients(net, net(x, clip_state_gradient=0.05, backend="fused", **layout))
            assert cuda_ops.runs()[driver] > before
            expected = gradients(net, net(x, clip_state_gradient=0.05, backend="reference", **layout))
            same(found, expected, rtol=1e-4, atol=1e-5)
            plain = gradients(net, net(x, backend="reference", **layout))
            assert not torch.allclose(plain["weight_hh_l0"], expected["weight_hh_l0"], rtol=1e-2)
