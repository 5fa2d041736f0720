"""fastrnn.Stream: single steps with a copy of the weights and a state of its own."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest
import torch
from dropin_cases import LAYERS, layer_pair, random_hx, same
from stepping import steps
from torch import nn

import fastrnn
from fastrnn import _C

T, B, I, H = 5, 4, 3, 6  # noqa: E741 - letters as in the equations


def make(kind: str = "lstm", **options):
    return layer_pair(kind, I, H, **options)[1].eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bias": False}, {"num_layers": 2, "batch_first": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_bits_of_step(kind, options, dtype):
    module = make(kind, **options).to(dtype)
    xs = torch.randn(T, B, I, dtype=dtype)
    stream = fastrnn.Stream(module)
    assert stream.state is None
    wanted, state = steps(module, xs)
    found = [stream.step(x) for x in xs]
    same(found, wanted, rtol=0, atol=0)
    same(stream.state, state, rtol=0, atol=0)
    assert not found[0].requires_grad


@pytest.mark.parametrize("layers", [1, 2])
def test_projection(layers):
    module, xs = make(proj_size=2, num_layers=layers), torch.randn(T, B, I)
    stream = fastrnn.Stream(module, B)
    wanted, state = steps(module, xs)
    same([stream.step(x) for x in xs], wanted, rtol=0, atol=0)
    same(stream.state, state, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_large_and_many_rows(kind):
    module = layer_pair(kind, 70, 130)[1]
    for batch in (1, 8, 40):
        xs = torch.randn(3, batch, 70)
        stream = fastrnn.Stream(module)
        same([stream.step(x) for x in xs], steps(module, xs)[0], rtol=0, atol=0)


def test_one_row_without_a_batch():
    module, xs = make("gru"), torch.randn(T, I)
    stream = fastrnn.Stream(module)
    same([stream.step(x) for x in xs], steps(module, xs)[0], rtol=0, atol=0)
    assert stream.state.shape == (1, 1, H)
    assert stream.step(xs[:1]).shape == (1, H)


def test_state():
    module, xs = make(num_layers=2), torch.randn(T, B, I)
    hx = random_hx(module)
    stream = fastrnn.Stream(module, state=hx)
    same(stream.state, hx, rtol=0, atol=0)
    wanted, last = steps(module, xs, hx)
    same([stream.step(x) for x in xs], wanted, rtol=0, atol=0)
    stream.state[0].zero_()  # a copy
    same(stream.state, last, rtol=0, atol=0)
    stream.state = hx
    hx[0].add_(1)  # copied
    same(stream.step(xs[0]), wanted[0], rtol=0, atol=0)
    stream.state = None
    assert all(s.abs().sum() == 0 for s in stream.state)
    y = stream.step(xs[0])
    kept = y.clone()
    stream.step(xs[1])
    assert torch.equal(y, kept)


@pytest.mark.parametrize("rows", [None, 2, [0, 3], torch.tensor([1, 2]), torch.tensor([True, False, False, True])])
def test_reset(rows):
    module, xs = make(), torch.randn(T, B, I)
    for hx in (None, random_hx(module)):
        stream = fastrnn.Stream(module, B, hx)
        for x in xs:
            stream.step(x)
        before = stream.state
        stream.reset(rows)
        hit = torch.zeros(B, dtype=torch.bool)
        hit[slice(None) if rows is None else rows] = True
        for s, old, first in zip(stream.state, before, hx or (0, 0), strict=True):
            first = torch.zeros_like(old) if hx is None else first
            same(s, torch.where(hit[:, None], first, old), rtol=0, atol=0)
    with pytest.raises(IndexError):
        stream.reset(B)


def test_weights_are_a_copy_until_refreshed():
    module, x = make(), torch.randn(B, I)
    stream = fastrnn.Stream(module, B)
    wanted = module.step(x)[0]
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
    same(stream.step(x), wanted.detach(), rtol=0, atol=0)
    state = stream.state
    stream.refresh()
    same(stream.state, state, rtol=0, atol=0)
    same(stream.step(x), module.step(x, state)[0].detach(), rtol=0, atol=0)


def test_input_of_any_strides_and_under_modes():
    module, wide = make(), torch.randn(I, B).t()
    wanted = module.step(wide)[0].detach()
    for x in (wide, torch._neg_view(-wide), wide.clone().requires_grad_()):
        same(fastrnn.Stream(module).step(x), wanted, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        same(fastrnn.Stream(module).step(wide), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_begun_in_inference_mode_and_used_outside(kind):
    module, xs = make(kind, num_layers=2), torch.randn(T, B, I)
    hx = random_hx(module)
    with torch.inference_mode():
        stream = fastrnn.Stream(module, B, hx)
        stream.step(xs[0])
        fresh = fastrnn.Stream(module)
        fresh.step(xs[0])
    stream.reset([1])
    stream.state = hx
    same([stream.step(x) for x in xs], steps(module, xs, hx)[0], rtol=0, atol=0)
    stream.reset()
    same(stream.state, hx, rtol=0, atol=0)
    fresh.state = None
    same([fresh.step(x) for x in xs], steps(module, xs)[0], rtol=0, atol=0)
    with torch.inference_mode():
        fresh.reset(0)
        fresh.state = tuple(s.clone() for s in hx) if isinstance(hx, tuple) else hx.clone()
    same([fresh.step(x) for x in xs], steps(module, xs, hx)[0], rtol=0, atol=0)


@pytest.mark.parametrize("size", [I, 300])
def test_within_torch_func(size):
    """It is no part of what is differentiated there, and none of its tensors may be."""
    module, xs = make("gru", num_layers=2) if size == I else layer_pair("gru", 300, 300)[1], torch.randn(T, B, size)
    streams = [fastrnn.Stream(module), fastrnn.Stream(module)]
    even, odd = xs[0], xs[0].t().contiguous().t()  # made inside, they would be wrapped

    def loss(w):
        made = fastrnn.Stream(module)
        for stream, x in ((streams[0], even), (streams[1], odd), (made, even)):
            w = w * stream.step(x).sum()
            stream.refresh()
        streams[0].reset([B - 1])
        streams.append(made)
        return w.sum()

    torch.func.grad(loss)(torch.ones(3))
    wanted, _ = steps(module, xs)
    for stream in streams[1:]:
        same([stream.step(x) for x in xs[1:]], wanted[1:], rtol=0, atol=0)
    assert torch.equal(streams[0].state[:, :-1], steps(module, xs[:1])[1][:, :-1])
    assert streams[0].state[:, -1].abs().sum() == 0
    stream = fastrnn.Stream(module)
    for wrong, x in ((torch.func.grad(lambda x: stream.step(x).sum()), xs[0]), (torch.vmap(stream.step), xs[:2])):
        with pytest.raises(TypeError, match="wrapped"):
            wrong(x)
        assert stream.state is None
    same([stream.step(x) for x in xs], wanted, rtol=0, atol=0)
    with pytest.raises(TypeError, match="module: expected ordinary weights"):
        torch.func.grad(lambda p: torch.func.functional_call(Made(module), p, ()).sum())(
            {f"module.{n}": p.detach() for n, p in module.named_parameters()}
        )


class Made(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self):
        return fastrnn.Stream(self.module, B).state


@pytest.mark.parametrize("kind", LAYERS)
def test_copied_and_pickled(kind):
    module, xs = make(kind, num_layers=2), torch.randn(T, B, I)
    hx = random_hx(module)
    for first in (None, hx):
        stream = fastrnn.Stream(module, state=first)
        unused = copy.deepcopy(stream)
        stream.step(xs[0])
        before = stream.state
        others = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
        wanted = [stream.step(x) for x in xs]
        with torch.no_grad():
            module.bias_hh_l0.add_(1)  # a stream has its weights to itself
        for other in others:
            same(other.state, before, rtol=0, atol=0)
            same([other.step(x) for x in xs], wanted, rtol=0, atol=0)
            other.reset()
            same(unused.step(xs[0]), other.step(xs[0]), rtol=0, atol=0)
            unused.reset()


@pytest.mark.parametrize("layers", [1, 2])
def test_bits_of_step_in_parts(layers):
    """Under "high" the products of a projection are made as in module.step, where there is a matrix unit."""
    module, xs = layer_pair("lstm", 64, 128, proj_size=64, num_layers=layers)[1], torch.randn(T, 16, 64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        stream = fastrnn.Stream(module)
        wanted, state = steps(module, xs)
        same([stream.step(x) for x in xs], wanted, rtol=0, atol=0)
        same(stream.state, state, rtol=0, atol=0)
    finally:
        torch.set_float32_matmul_precision(before)


def test_other_threads_run_during_a_long_step():
    torch.set_num_threads(1)
    _C.set_poison(False)
    stream, x = fastrnn.Stream(fastrnn.LSTM(1024, 1024, 4), 8), torch.randn(8, 1024)
    stream.step(x)
    running, ticks = True, 0

    def tick():
        nonlocal ticks
        while running:
            ticks += 1
            time.sleep(1e-4)

    thread = threading.Thread(target=tick)
    thread.start()
    inside = []
    for _ in range(20):
        before = ticks
        stream.step(x)
        inside.append(ticks - before)
    running = False
    thread.join()
    # Python gives its lock away between two lines too, but not twenty times.
    assert sum(inside) > 20, inside


@pytest.mark.parametrize("size", [I, 300])
def test_steps_of_several_threads_take_turns(size):
    """All of them happen, each from the state that another has left."""
    module = layer_pair("rnn_relu", size, size, bias=False)[1]
    with torch.no_grad():  # counts its steps
        module.weight_ih_l0.copy_(torch.eye(size))
        module.weight_hh_l0.copy_(torch.eye(size))
    stream, x = fastrnn.Stream(module, 2), torch.ones(2, size)

    def many():
        for k in range(200):
            stream.step(x)
            if k % 50 == 0:
                stream.refresh()
                assert stream.state.unique().numel() == 1

    threads = [threading.Thread(target=many) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert torch.equal(stream.state, torch.full((1, 2, size), 800.0))


def test_errors():
    with pytest.raises(
        TypeError, match=r"module: expected a fastrnn.LSTM, GRU or RNN, or a network of fastrnn.cell, got LSTM"
    ):
        fastrnn.Stream(nn.LSTM(I, H))
    with pytest.raises(ValueError, match="module: expected bidirectional=False"):
        fastrnn.Stream(make(bidirectional=True))
    with pytest.raises(TypeError, match="module: expected dense CPU weights"):
        fastrnn.Stream(make().to("meta"))
    with pytest.raises(ValueError, match="batch: expected a positive number"):
        fastrnn.Stream(make(), 0)
    module = make()
    stream = fastrnn.Stream(module, B)
    for bad in (torch.randn(B, I).double(), "x", torch.randn(B, I).to("meta"), None):
        with pytest.raises(TypeError, match=r"x: expected a dense CPU tensor of torch.float32, got"):
            stream.step(bad)
    for bad in (torch.randn(B + 1, I), torch.randn(B, I + 1), torch.randn(1, B, I), torch.randn(I)):
        with pytest.raises(ValueError, match=r"x: expected shape \(4, 3\), got"):
            stream.step(bad)
    with pytest.raises(ValueError, match=r"x: expected shape \('B', 3\)"):
        fastrnn.Stream(module).step(torch.randn(0, I))
    with pytest.raises(ValueError, match=r"state: expected shape \(1, 4, 6\)"):
        stream.state = (torch.zeros(1, 2, H), torch.zeros(1, 2, H))
    with pytest.raises(TypeError, match=r"state: expected 2 tensor"):
        stream.state = torch.zeros(1, B, H)
    with pytest.raises(TypeError, match="wrapped"):
        torch.vmap(stream.step)(torch.randn(2, B, I))
    module.weight_ih_l0 = nn.Parameter(torch.zeros(4 * H, I + 1))
    with pytest.raises(ValueError, match=r"module: expected weights \(.* as before, got \("):
        stream.refresh()
    module.double()
    with pytest.raises(TypeError, match="module: expected weights of"):
        stream.refresh()


def test_the_compiled_stream_checks_what_it_is_given():
    """`fastrnn.Stream` checks first; whoever goes past it must not read or write outside of a tensor."""
    w = [torch.randn(8, 3), torch.randn(8, 2), torch.randn(8), torch.randn(8), None]
    for wrong in ([], [[]], [w[:4]], [[None, *w[1:]]], [[w[0], torch.randn(8, 3), *w[2:]]], [w, w],
                  [[w[0], w[1].double(), *w[2:]]], [[w[0], w[1].t().contiguous().t(), *w[2:]]]):  # fmt: skip
        with pytest.raises(ValueError, match="weights: expected"):
            _C.Stream("lstm", wrong, 2)
    for batch in (0, -1):
        with pytest.raises(ValueError, match="batch: expected a positive number"):
            _C.Stream("lstm", [w], batch)
    with pytest.raises(ValueError, match="cell: expected one that multiplies nothing but h"):
        _C.Stream("unknown", [w], 2)
    stream = _C.Stream("lstm", [w], 2)
    other = [torch.randn(8, 4), *w[1:]]
    with pytest.raises(ValueError, match="weights: expected the sizes"):
        stream.set_weights([other])
    for rows in ([2], [-1], [1 << 40]):
        with pytest.raises(IndexError, match="rows: expected rows from 0 to 1"):
            stream.reset(rows, [])
    state = torch.zeros(1, 2, 2)
    for initial in ([state], [state, state[:, :1]], [state, state.double()], [state, torch.zeros(1, 4, 2)[:, ::2]]):
        with pytest.raises(ValueError, match="initial: expected"):
            stream.reset(None, initial)
    with pytest.raises(TypeError, match=r"dtype: expected a torch\.dtype"):
        _C.has_kernels("lstm", 3)
